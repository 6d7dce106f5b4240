"""Rows of different lengths, scattered over one pool; whatever must not be read is NaN."""

from dataclasses import dataclass, replace

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.summaries import PageSummary
from sgl_sparsekv.types import Candidates


@dataclass(frozen=True)
class Rows:
    """A batch for the ops.

    Attributes:
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`, NaN in slots that belong to no row.
        values: as `keys`.
        table: int32 `[rows, U]`, 0 behind the end of a row.
        lengths: tokens of each row.
        begin: first candidate of each row.
        end: one past the last candidate of each row.
        keep: units to keep of each row.
        unit: tokens per unit.
    """

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    lengths: list[int]
    begin: list[int]
    end: list[int]
    keep: list[int]
    unit: int

    @property
    def heads(self) -> int:
        """KV heads."""
        return self.q.shape[1]

    @property
    def width(self) -> int:
        """Widest unit table."""
        return self.table.shape[1]

    @property
    def scale(self) -> float:
        """Softmax scale."""
        return float(self.q.shape[-1] ** -0.5)

    @property
    def num_units(self) -> torch.Tensor:
        """int32 `[rows]`, the partial tail included."""
        return torch.tensor([-(-n // self.unit) for n in self.lengths], dtype=torch.int32)

    @property
    def counts(self) -> torch.Tensor:
        """int32 `[rows]`, units to keep."""
        return torch.tensor(self.keep, dtype=torch.int32)

    @property
    def tails(self) -> torch.Tensor:
        """int32 `[rows]`, tokens of the last unit."""
        return torch.tensor([(n - 1) % self.unit + 1 for n in self.lengths], dtype=torch.int32)

    @property
    def candidates(self) -> Candidates:
        """What may be ranked."""
        begin, end = (torch.tensor(x, dtype=torch.int32) for x in (self.begin, self.end))
        return Candidates(self.table, begin, end)

    def always_kept(self, row: int) -> set[int]:
        """Sinks, window and tail."""
        total = int(self.num_units[row])
        return {u for u in range(total) if not self.begin[row] <= u < self.end[row]}

    def slots(self, row: int) -> torch.Tensor:
        """Slot of each position."""
        first = self.table[row].long()[:, None] * self.unit
        return (first + torch.arange(self.unit)).reshape(-1)[: self.lengths[row]]

    def keys_of(self, row: int) -> torch.Tensor:
        """K `[L, H, D]` in position order."""
        return self.keys[self.slots(row)]

    def take(self, order: list[int]) -> "Rows":
        """These rows only, over the same pool."""
        width = int(self.num_units[order].max())
        return replace(
            self,
            q=self.q[order],
            table=self.table[order, :width],
            lengths=[self.lengths[i] for i in order],
            begin=[self.begin[i] for i in order],
            end=[self.end[i] for i in order],
            keep=[self.keep[i] for i in order],
        )

    def fields(self, summary: PageSummary, ops: Ops) -> torch.Tensor:
        """Page metadata of the candidates; NaN everywhere else."""
        units = self.keys.shape[0] // self.unit
        shape = (units, self.heads, len(summary.planes), self.q.shape[-1])
        fields = torch.full(shape, torch.nan, dtype=self.keys.dtype)
        spans = zip(self.table, self.begin, self.end, strict=True)
        scored = [table[begin:end].long() for table, begin, end in spans]
        ops.summarise(summary, self.keys, fields, torch.unique(torch.cat(scored)))
        return fields


def make_rows(
    number: int,
    count: int,
    group: int = 2,
    dtype: torch.dtype = torch.float32,
    heads: int = 2,
    dim: int = 16,
) -> Rows:
    """The batch with that number: lengths, unit size, sinks, window and budget vary."""
    generator = torch.Generator().manual_seed(number)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    unit = (1, 4, 16)[draw(0, 2)]
    lengths = [draw(1, 12 * unit + 3) for _ in range(count)]
    totals = [-(-n // unit) for n in lengths]
    free = (torch.randperm(sum(totals) + 5, generator=generator) + 1).tolist()
    table = torch.zeros(count, max(totals), dtype=torch.int32)
    shape = ((sum(totals) + 6) * unit, heads, dim)
    keys, values = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan)
    values = values.to(dtype)
    begin, end, keep = [], [], []
    for i, (length, total) in enumerate(zip(lengths, totals, strict=True)):
        own = [free.pop() for _ in range(total)]
        table[i, :total] = torch.tensor(own)
        first = torch.tensor(own)[:, None] * unit
        slots = (first + torch.arange(unit)).reshape(-1)[:length]
        keys[slots] = torch.randn(length, heads, dim, generator=generator).to(dtype)
        values[slots] = torch.randn(length, heads, dim, generator=generator).to(dtype)
        end.append(max(0, total - 1 - draw(0, 2)))
        begin.append(min(draw(0, 2), end[-1]))
        keep.append(draw(begin[-1] + total - end[-1], total))
    q = torch.randn(count, heads, group, dim, generator=generator).to(dtype)
    return Rows(q, keys, values, table, lengths, begin, end, keep, unit)
