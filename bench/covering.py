"""Steps that read until a share of attention is covered, beside fixed ones of as many bytes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bench.layers import BUDGET, PAGE_SIZE, Layers
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.base import SelectionMethod
from sgl_sparsekv.selection.sampling import sample_size, sampled_ranking
from sgl_sparsekv.types import KeptUnits, Reduction, ScoreInputs, Selection

PEER = "same_bytes"
"""A fixed budget that reads as many bytes, metadata and the sample counted."""
HALVINGS = 12


@dataclass(frozen=True)
class CoveringLayers:
    """One method on the layers of a benchmark.

    Attributes:
        method: what ranks.
        layers: queries, K and V.
        inputs: what the i-th layer, counted round, is ranked by.
        kept: sinks, window and tail of every layer; a server finds them once per step.
        tails: int32 `[rows]`, tokens of each last unit.
        coverage: float32 `[rows]`, so much that about BUDGET tokens are read.
    """

    method: SelectionMethod
    layers: Layers
    inputs: Callable[[int], ScoreInputs]
    kept: KeptUnits
    tails: torch.Tensor
    coverage: torch.Tensor

    @staticmethod
    def make(
        ops: Ops,
        layers: Layers,
        name: str,
        inputs: Callable[[int], ScoreInputs],
        tails: torch.Tensor,
    ) -> "CoveringLayers":
        """Look for the coverage: more of it never reads less."""
        rows, given = layers.q.shape[0], inputs(0)
        kept = KeptUnits.of(given.candidates, given.num_units)
        found = CoveringLayers(load_method(name), layers, inputs, kept, tails, torch.zeros(rows))
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found = replace(found, coverage=torch.full((rows,), middle))
            read = found.select(ops, 0).counts.float().mean().item() * given.unit_size
            low, high = (middle, high) if read < BUDGET else (low, middle)
        return found

    def select(self, ops: Ops, i: int) -> Selection:
        """What a KV head reads until it covers enough."""
        given = self.inputs(i)
        table = self.kept.table[:, None].expand(-1, given.q.shape[1], -1)
        known = self._attend(ops, i, table, self.kept.counts)[1]
        told = replace(given, known=known, reduction=Reduction.MEAN_SOFTMAX)
        scores = self.method.score(ops, told)
        ranking = sampled_ranking(ops, scores, told, self.coverage)
        units, apart = (told.candidates, told.num_units), torch.zeros_like(told.counts)
        counts = ops.allot(ranking.scores, *units, told.num_units, ranking.lowest, apart)
        return ops.select(ranking.scores, *units, counts)

    def fixed(self, ops: Ops, i: int, counts: torch.Tensor) -> Selection:
        """The best of a budget int32 `[rows]`."""
        given = self.inputs(i)
        scores = self.method.score(ops, given)
        return ops.select(scores, given.candidates, given.num_units, counts)

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        given = self.inputs(0)
        read = self.select(ops, 0).counts.float().mean(-1)
        counts = (read + sample_size(given.unit_size) / 2).round().int()  # of keys alone
        counts = counts.minimum(given.num_units)

        def attended(i: int, chosen: Selection) -> object:
            return self._attend(ops, i, chosen.physical, chosen.counts)

        return {
            "decode_covering": lambda i: attended(i, self.select(ops, i)),
            PEER: lambda i: attended(i, self.fixed(ops, i, counts)),
        }

    def sizes(self, ops: Ops, metadata: int) -> dict[str, int]:
        """Bytes that each call must read, with those of the method's metadata."""
        given = self.inputs(0)
        rows, heads, _, dim = given.q.shape
        read = int(self.select(ops, 0).counts.sum()) * given.unit_size * 2 * dim * 2
        sample = rows * heads * sample_size(given.unit_size) * given.unit_size * dim * 2
        return {"decode_covering": metadata + read + sample, PEER: metadata + read + sample}

    def _attend(
        self, ops: Ops, i: int, table: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.layers.pool(i)
        given = self.inputs(i)
        args = (table, counts, self.tails, given.scale, given.unit_size)
        return ops.attend(given.q, keys, values, *args)


def pages(layers: Layers, scale: float) -> Callable[[int], ScoreInputs]:
    """Inputs of `quest`."""

    def inputs(i: int) -> ScoreInputs:
        return ScoreInputs(
            q=layers.q,
            keys=layers.pool(i)[0],
            fields={"min_max": layers.fields[i % len(layers.fields)]},
            index=None,
            candidates=layers.candidates,
            num_units=layers.num_units,
            counts=layers.counts,
            scale=scale,
            reduction=Reduction.MAX_SOFTMAX,
            unit_size=PAGE_SIZE,
        )

    return inputs
