"""Buffers that the kernel benchmarks read, and the gate before any timing."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Candidates, Reduction

HEADS, GROUP, DIM, PAGE_SIZE, BUDGET = 8, 4, 128, 16, 2048
SCALE = DIM**-0.5
SINK_UNITS, WINDOW_UNITS = 1, 4
METADATA_BYTES = 64 << 20
"""Rotated at least; the KV is 16 times as much. Last-level caches are smaller."""


@dataclass(frozen=True)
class Layers:
    """K, V and page metadata of several layers for one batch of equally long rows.

    Attributes:
        q: `[rows, H, G, D]`.
        keys: per layer `[slots, H, D]`.
        values: as `keys`.
        fields: per layer `[units, H, 2, D]`.
        candidates: all units but sinks and window.
        num_units: int32 `[rows]`.
        counts: int32 `[rows]`, units of the budget.
        tails: int32 `[rows]`.
        context: tokens per row.
    """

    q: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    fields: list[torch.Tensor]
    candidates: Candidates
    num_units: torch.Tensor
    counts: torch.Tensor
    tails: torch.Tensor
    context: int

    @property
    def units(self) -> int:
        """Units per row."""
        return self.candidates.unit_table.shape[1]

    def pool(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the i-th layer, counted round."""
        return self.keys[i % len(self.keys)], self.values[i % len(self.values)]

    @staticmethod
    def make(ops: Ops, context: int, batch: int) -> "Layers":
        """Random K and V, with metadata by `ops`; the last unit is half full."""
        units = context // PAGE_SIZE
        slots = batch * context
        layers = max(1, METADATA_BYTES // (batch * units * HEADS * 2 * DIM * 2))
        keys = [modelled_rows(slots, seed) for seed in range(layers)]
        values = [modelled_rows(slots, seed + 1000) for seed in range(layers)]
        table = torch.arange(batch * units, dtype=torch.int32).view(batch, units)
        fields = []
        for layer in keys:
            fields.append(layer.new_empty(batch * units, HEADS, 2, DIM))
            ops.summarise(Quest.summary, layer, fields[-1], torch.arange(batch * units))

        def full(value: int) -> torch.Tensor:
            return torch.full((batch,), value, dtype=torch.int32)

        draw = torch.Generator().manual_seed(0)
        return Layers(
            torch.randn(batch, HEADS, GROUP, DIM, generator=draw).bfloat16(),
            *(keys, values, fields),
            Candidates(table, full(SINK_UNITS), full(units - WINDOW_UNITS)),
            *(full(units), full(min(BUDGET, context) // PAGE_SIZE), full(PAGE_SIZE // 2), context),
        )


def modelled_rows(slots: int, seed: int) -> torch.Tensor:
    """bfloat16 `[slots, H, D]` that cluster as the keys of language models do.

    Seven tenths of the variance lie in 5 directions of each KV head. Of clusters of 32 tokens 90 %
    then have 13 to 50 (language models: 13 to 53), and .56 of the variance is within them (.52 to
    .68). A block is repeated, each token at a scale of its own.
    """
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(HEADS, 5, DIM, generator=rng) / 5**0.5
    block = torch.einsum("thr,hrd->thd", torch.randn(1024, HEADS, 5, generator=rng), directions)
    block = block * 0.7**0.5 + torch.randn(1024, HEADS, DIM, generator=rng) * 0.3**0.5
    scale = 0.9 + 0.2 * torch.rand(slots, HEADS, 1, generator=rng).bfloat16()
    return block.bfloat16().repeat(-(-slots // 1024), 1, 1)[:slots].mul_(scale)


def gate(ops: Ops, layers: Layers, scale: float) -> None:
    """Judge score, select, attend and the metadata of one layer by the reference.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    reference = load_ops("reference")
    (keys, values), fields = layers.pool(0), layers.fields[0]
    want = torch.empty_like(fields)
    every = torch.arange(fields.shape[0])
    reference.summarise(Quest.summary, keys, want, every)
    assert torch.equal(fields, want), "page metadata differs from the reference"
    args = (layers.candidates, scale, Reduction.MAX_SOFTMAX)
    scores = ops.score(Quest.summary, layers.q, fields, *args)
    expected = reference.score(Quest.summary, layers.q, fields, *args)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
    chosen, best = (
        o.select(scores, layers.candidates, layers.num_units, layers.counts)
        for o in (ops, reference)
    )
    assert torch.equal(chosen.physical, best.physical), "selection differs from the reference"
    every_unit = layers.candidates.unit_table[:, None].expand(-1, HEADS, -1)
    for table, counts in ((best.physical, best.counts), (every_unit, layers.num_units)):
        tail = (counts, layers.tails, scale, PAGE_SIZE)
        got = ops.attend(layers.q, keys, values, table, *tail)
        for one, other in zip(
            got, reference.attend(layers.q, keys, values, table, *tail), strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=2.0**-7)


@dataclass(frozen=True)
class PrefillLayer:
    """One request: q `[L, H * G, D]`, keys and values `[L, H, D]`, slots `[L]`."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor


def prefill_layer(tokens: int, chunk: int) -> PrefillLayer:
    """Random queries, K and V of a prompt."""
    q = torch.randn(chunk, HEADS * GROUP, DIM, generator=torch.Generator().manual_seed(7))
    queries = q.bfloat16().repeat(-(-tokens // chunk), 1, 1)[:tokens]
    return PrefillLayer(
        queries, modelled_rows(tokens, 1), modelled_rows(tokens, 2), torch.arange(tokens)
    )
