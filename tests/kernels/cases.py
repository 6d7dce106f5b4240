"""Random pools and batches for kernel tests: everything a kernel must not read is NaN."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.types import Candidates

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place of 1.0, per element type."""


@dataclass
class Batch:
    """Rows of different lengths over one pool, with the first 2 and last 3 units always kept.

    Attributes:
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`, NaN in every slot that belongs to no row.
        values: as `keys`.
        lengths: tokens of each row.
        table: int32 `[rows, U]`.
        unit_size: tokens per unit.
    """

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    lengths: list[int]
    table: torch.Tensor
    unit_size: int

    @property
    def num_units(self) -> torch.Tensor:
        """Units of each row, int32 `[rows]`."""
        return torch.tensor([-(-n // self.unit_size) for n in self.lengths], dtype=torch.int32)

    @property
    def tails(self) -> torch.Tensor:
        """Tokens in each row's last unit, int32 `[rows]`."""
        tails = [(n - 1) % self.unit_size + 1 for n in self.lengths]
        return torch.tensor(tails, dtype=torch.int32)

    @property
    def candidates(self) -> Candidates:
        """Candidates between 2 sink units and a window of 3."""
        begin = self.num_units.clamp(max=2)
        return Candidates(self.table, begin, torch.maximum(begin, self.num_units - 3))

    def slots(self, row: int) -> torch.Tensor:
        """Slot of each position of a row, int64 `[L]`."""
        first = self.table[row].long()[:, None] * self.unit_size
        return (first + torch.arange(self.unit_size)).reshape(-1)[: self.lengths[row]]

    def alone(self, row: int) -> "Batch":
        """The batch of this row only, over the same pool."""
        width = int(self.num_units[row])
        one = slice(row, row + 1)
        return Batch(
            self.q[one],
            self.keys,
            self.values,
            self.lengths[one],
            self.table[one, :width],
            self.unit_size,
        )


def make_batch(
    lengths: list[int],
    heads: int = 2,
    group: int = 4,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    unit_size: int = 16,
    seed: int = 0,
) -> Batch:
    """Rows at shuffled places of a pool that has spare units."""
    rng = torch.Generator().manual_seed(seed)
    counts = [-(-n // unit_size) for n in lengths]
    order = torch.randperm(sum(counts) + 5, generator=rng)
    shape = (len(order) * unit_size, heads, dim)
    keys = torch.full(shape, torch.nan, dtype=dtype)
    values = keys.clone()
    table = torch.full((len(lengths), max(counts, default=1)), -(10**6), dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = order[sum(counts[:row]) :][:count]
    q = torch.randn(len(lengths), heads, group, dim, generator=rng).to(dtype)
    batch = Batch(q, keys, values, lengths, table, unit_size)
    for row in range(len(lengths)):
        slots = batch.slots(row)
        for pool in (keys, values):
            pool[slots] = torch.randn(len(slots), heads, dim, generator=rng).to(dtype)
    return batch


def attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q `[G, D]` over `[L, D]` in q's dtype: (out, lse)."""
    logits = q @ keys.T * scale
    return logits.softmax(-1) @ values, logits.logsumexp(-1)


def allowed_error(exact: torch.Tensor, low: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Error allowed against a float64 result.

    Three times the worst error of the same formula in torch's float32 (another order of sums may
    err as much), plus the rounding of the result to its element type.
    """
    return 3 * (low.double() - exact).abs().max() + 1.01 * EPS[dtype] * exact.abs() + 1e-7
