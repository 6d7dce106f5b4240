"""Steps that read until a share of attention is covered, beside fixed ones of as many bytes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.base import SelectionMethod
from sgl_sparsekv.selection.sampling import covering_selection, sample_size
from sgl_sparsekv.types import Goal, KeptUnits, Reduction, ScoreInputs, Selection

from .layers import BUDGET, PAGE_SIZE, Layers

PEER = "same_bytes"
"""A fixed budget that reads as many bytes, metadata and the sample counted."""
HALVINGS = 12
Inputs = Callable[[int, torch.Tensor | None], ScoreInputs]
"""Of a layer's number, and the log-sum-exp over what is read in any case or None."""


@dataclass(frozen=True)
class CoveringLayers:
    """One method on the layers of a benchmark.

    Attributes:
        method: what ranks.
        layers: queries, K and V.
        inputs: what the i-th layer, counted round, is ranked by, with what is known of it.
        kept: sinks, window and tail of every layer; a server finds them once per step.
        tails: int32 `[rows]`, tokens of each last unit.
        scale: softmax scale.
        unit_size: tokens of a unit.
        goals: of each layer a coverage so high that about BUDGET tokens are read.
    """

    method: SelectionMethod
    layers: Layers
    inputs: Inputs
    kept: KeptUnits
    tails: torch.Tensor
    scale: float
    unit_size: int
    goals: list[Goal]

    @staticmethod
    def make(
        ops: Ops, layers: Layers, name: str, inputs: Inputs, tails: torch.Tensor
    ) -> "CoveringLayers":
        """Look for the coverages: more of it never reads less."""
        rows, given = layers.q.shape[0], inputs(0, None)
        kept = KeptUnits.of(given.candidates, given.num_units)
        apart, shape = torch.zeros(rows, dtype=torch.int32), (tails, given.scale, given.unit_size)
        goals = [Goal(torch.zeros(rows), apart)] * len(layers.keys)
        found = CoveringLayers(load_method(name), layers, inputs, kept, *shape, goals)
        for i in range(len(goals)):
            low, high = 0.0, 1.0
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                goals[i] = Goal(torch.full((rows,), middle), apart)
                read = found.select(ops, i).counts.float().mean().item() * given.unit_size
                low, high = (middle, high) if read < BUDGET else (low, middle)
        return found

    def select(self, ops: Ops, i: int) -> Selection:
        """What a KV head reads until it covers enough."""
        keys, _ = self.layers.pool(i)
        how = (self.kept, self.tails, self.scale, self.unit_size)
        told = self.inputs(i, ops.known(self.layers.q, keys, *how))
        goal = self.goals[i % len(self.goals)]
        return covering_selection(ops, self.method.score(ops, told), told, goal)

    def fixed(self, ops: Ops, i: int, counts: torch.Tensor) -> Selection:
        """The best of a budget int32 `[rows]`."""
        given = self.inputs(i, None)
        scores = self.method.score(ops, given)
        return ops.select(scores, given.candidates, given.num_units, counts)

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        given = self.inputs(0, None)
        sample = sample_size(given.unit_size) / 2  # of keys alone
        counts = [
            (self.select(ops, i).counts.float().mean(-1) + sample).round().int()
            for i in range(len(self.goals))
        ]

        def attended(i: int, chosen: Selection) -> object:
            return self._attend(ops, i, chosen.physical, chosen.counts)

        return {
            "decode_covering": lambda i: attended(i, self.select(ops, i)),
            PEER: lambda i: attended(i, self.fixed(ops, i, counts[i % len(counts)])),
        }

    def sizes(self, ops: Ops, metadata: int) -> dict[str, int]:
        """Bytes that each call must read, with those of the method's metadata."""
        given = self.inputs(0, None)
        rows, heads, _, dim = given.q.shape
        read = int(self.select(ops, 0).counts.sum()) * given.unit_size * 2 * dim * 2
        sample = rows * heads * sample_size(given.unit_size) * given.unit_size * dim * 2
        return {"decode_covering": metadata + read + sample, PEER: metadata + read + sample}

    def _attend(
        self, ops: Ops, i: int, table: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.layers.pool(i)
        args = (table, counts, self.tails, self.scale, self.unit_size)
        return ops.attend(self.layers.q, keys, values, *args)


def pages(layers: Layers, scale: float) -> Inputs:
    """Inputs of `quest`, with no ceiling but the context."""

    def inputs(i: int, known: torch.Tensor | None) -> ScoreInputs:
        return ScoreInputs(
            q=layers.q,
            keys=layers.pool(i)[0],
            fields={"min_max": layers.fields[i % len(layers.fields)]},
            index=None,
            candidates=layers.candidates,
            num_units=layers.num_units,
            counts=layers.num_units,
            scale=scale,
            reduction=Reduction.MAX_SOFTMAX if known is None else Reduction.MEAN_SOFTMAX,
            unit_size=PAGE_SIZE,
            known=known,
        )

    return inputs
