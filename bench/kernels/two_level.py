"""Two-level bounds in the kernel benchmarks: what a step reads, and the calls that are timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.segment_records import SegmentBounds
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.two_level import OVERSAMPLING, SEGMENT
from sgl_sparsekv.types import Reduction, ScoreInputs, Selection

from .layers import BUDGET, DIM, HEADS, PAGE_SIZE, Layers

METHOD = "quest_two_level"
PER_SEGMENT = SEGMENT // PAGE_SIZE


@dataclass(frozen=True)
class TwoLevelLayers:
    """Bounds of the segments of all layers, for rows of equal length.

    Attributes:
        layers: queries, K, V and page bounds.
        bounds: of each layer.
        scale: softmax scale.
    """

    layers: Layers
    bounds: list[SegmentBounds]
    scale: float

    @staticmethod
    def make(layers: Layers, scale: float) -> "TwoLevelLayers":
        """Bounds of whole segments, from those of their pages."""
        rows = layers.q.shape[0]
        table = torch.arange(rows * layers.units // PER_SEGMENT, dtype=torch.int32).view(rows, -1)
        bounds = []
        for fields in layers.fields:
            pages = fields.view(-1, PER_SEGMENT, HEADS, 2, DIM)
            low, high = pages[:, :, :, 0].amin(1), pages[:, :, :, 1].amax(1)
            bounds.append(SegmentBounds(torch.stack((low, high), 2), table, SEGMENT))
        return TwoLevelLayers(layers, bounds, scale)

    def score(self, ops: Ops, i: int) -> torch.Tensor:
        """Scores of the i-th layer, counted round."""
        layers, (keys, _) = self.layers, self.layers.pool(i)
        inputs = ScoreInputs(
            q=layers.q,
            keys=keys,
            fields={"min_max": layers.fields[i % len(layers.fields)]},
            index=self.bounds[i % len(self.bounds)],
            candidates=layers.candidates,
            num_units=layers.num_units,
            counts=layers.counts,
            scale=self.scale,
            reduction=Reduction.MAX_SOFTMAX,
            unit_size=PAGE_SIZE,
        )
        return load_method(METHOD).score(ops, inputs)

    def select(self, ops: Ops, i: int) -> Selection:
        """The budget's best pages of the i-th layer."""
        layers = self.layers
        return ops.select(self.score(ops, i), layers.candidates, layers.num_units, layers.counts)

    def decode(self, ops: Ops, i: int) -> object:
        """Score, select and attend."""
        chosen, (keys, values) = self.select(ops, i), self.layers.pool(i)
        args = (chosen.physical, chosen.counts, self.layers.tails, self.scale, PAGE_SIZE)
        return ops.attend(self.layers.q, keys, values, *args)

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        return {
            "decode_sparse": lambda i: self.decode(ops, i),
            "score": lambda i: self.score(ops, i),
        }

    def sizes(self) -> dict[str, int]:
        """Bytes that each call must read."""
        rows, context = self.layers.q.shape[0], self.layers.context
        pages = min(context, OVERSAMPLING * BUDGET) // PAGE_SIZE
        metadata = rows * (context // SEGMENT + pages) * 2 * HEADS * DIM * 2
        chosen = rows * min(BUDGET, context) * 2 * HEADS * DIM * 2
        return {"decode_sparse": metadata + chosen, "score": metadata}
