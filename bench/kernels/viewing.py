"""Views in the kernel benchmarks: a long context of which a list of tokens is read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.views import LayerView, lists_of

from .layers import BUDGET, DIM, HEADS, PAGE_SIZE, Layers

METHOD = "snapkv"


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
            return LayerView.of(context - 1, kept)

        views = [[view() for _ in range(rows)] for _ in layers.keys]
        slots = torch.arange(rows * context, dtype=torch.int32).view(rows, context)
        return ViewLayers(layers, views, slots, scale)

    def decode(self, ops: Ops, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a step does in the i-th layer, counted round: list and attend."""
        lists = lists_of(self.views[i % len(self.views)], list(self.slots))
        return ops.attend_lists(self.layers.q, *self.layers.pool(i), lists, self.scale)

    def gate(self, ops: Ops) -> None:
        """Judge the first layer's step by the reference.

        Raises:
            AssertionError: they differ by more than rounding.
        """
        got, want = self.decode(ops, 0), self.decode(load_ops("reference"), 0)
        torch.testing.assert_close(got[0], want[0], atol=0.01, rtol=0.02)
        torch.testing.assert_close(got[1], want[1], atol=1e-4, rtol=1e-5)

    def decode_short(self, ops: Ops, i: int) -> object:
        """A dense step of a request that has no more tokens than a view keeps."""
        units = BUDGET // PAGE_SIZE
        table = self.layers.candidates.unit_table[:, None, :units].expand(-1, HEADS, -1)
        counts = torch.full_like(self.layers.counts, units)
        args = (table, counts, torch.full_like(counts, PAGE_SIZE), self.scale, PAGE_SIZE)
        return ops.attend(self.layers.q, *self.layers.pool(i), *args)

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        return {
            "decode_view": lambda i: self.decode(ops, i),
            "same_tokens": lambda i: self.decode_short(ops, i),
        }

    def sizes(self) -> dict[str, int]:
        """Bytes that each call must read."""
        read = self.layers.q.shape[0] * BUDGET * 2 * HEADS * DIM * 2
        return {"decode_view": read + read // (DIM * 2), "same_tokens": read}
