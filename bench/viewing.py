"""Views in the kernel benchmarks: a long context of which a list of tokens is read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.layers import BUDGET, DIM, HEADS, Layers
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.views import LayerView, selection_of

METHOD = "snapkv"
PART = "decode_part"
"""A dense step over as many tokens as a view keeps, in a context of that length."""


@dataclass(frozen=True)
class ViewLayers:
    """Kept tokens of all layers, for rows of equal length: others in each KV head.

    Attributes:
        layers: queries, K and V.
        views: by layer, of each row.
        slots: int32 `[rows, L]`, slot of each position.
        scale: softmax scale.
    """

    layers: Layers
    views: list[list[LayerView]]
    slots: torch.Tensor
    scale: float

    @staticmethod
    def make(layers: Layers, scale: float) -> "ViewLayers":
        """Random tokens, `BUDGET` for each KV head, and the newest."""
        rows, context = layers.q.shape[0], layers.context
        drawn = torch.Generator().manual_seed(3)

        def view() -> LayerView:
            kept = [
                torch.randperm(context - 1, generator=drawn)[: BUDGET - 1].sort().values
                for _ in range(HEADS)
            ]
            return LayerView.of(context - 1, kept, [torch.zeros(len(one)) for one in kept])

        views = [[view() for _ in range(rows)] for _ in layers.keys]
        slots = torch.arange(rows * context, dtype=torch.int32).view(rows, context)
        return ViewLayers(layers, views, slots, scale)

    def decode(self, ops: Ops, i: int) -> object:
        """What a step does in the i-th layer, counted round: list and attend."""
        chosen = selection_of(self.views[i % len(self.views)], list(self.slots))
        tails = torch.ones_like(self.layers.tails)
        args = (chosen.physical, chosen.counts, tails, self.scale, 1)
        return ops.attend(self.layers.q, *self.layers.pool(i), *args)

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        return {"decode_sparse": lambda i: self.decode(ops, i)}

    def sizes(self) -> dict[str, int]:
        """Bytes that each call must read."""
        rows, width = self.layers.q.shape[0], HEADS * DIM * 2
        return {"decode_sparse": rows * BUDGET * (2 * width + HEADS * 4)}
