"""Views of the requests of one step: what their queries see, and what their rows read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...selection.policy import IntArray
from ...types import TokenLists
from ...views import RequestView, lists_of
from ..layers import ModelLayers
from ..planner import StepPlan
from ..request_table import RequestEntry


@dataclass(frozen=True)
class _Seen:
    """Tokens of a step whose queries a view sees.

    Attributes:
        view: of their request.
        tokens: which of the step's.
        first: position of the first.
        slots: int `[L]`, slot of each position of the context.
        dense_layers: first layers that have no view.
    """

    view: RequestView
    tokens: slice
    first: int
    slots: torch.Tensor
    dense_layers: int


@dataclass
class StepViews:
    """The rows of one step whose requests keep views; where none does, nothing happens.

    Args:
        layers: of the model.
    """

    layers: ModelLayers
    _extending: list[_Seen] = field(default_factory=list)
    _decoding: dict[int, _Seen] = field(default_factory=dict)

    def begin_step(self) -> None:
        """Forget the rows of the last step."""
        self._extending.clear()
        self._decoding.clear()

    def extend(self, entry: RequestEntry, tokens: slice, slots: torch.Tensor) -> None:
        """A row reads a part of its prompt: the last tokens of the context `slots` `[L]`."""
        if entry.view is not None:
            self.settle(entry)
            first = len(slots) - (tokens.stop - tokens.start)
            dense = entry.options.dense_layers
            self._extending.append(_Seen(entry.view, tokens, first, slots, dense))

    def narrowed(self, entries: Sequence[RequestEntry], lengths: IntArray) -> list[bool]:
        """Which of the requests that decode in contexts of `lengths` tokens have a view; what is
        due is made."""
        return [self._settled(*each) for each in zip(entries, lengths.tolist(), strict=True)]

    def decode(self, entries: Sequence[RequestEntry], lengths: IntArray, plan: StepPlan) -> None:
        """The rows of a plan decode, in contexts of `lengths` tokens."""
        for place, (entry, length) in enumerate(zip(entries, lengths.tolist(), strict=True)):
            if entry.view is not None:
                own, dense = plan.slots[place, :length], entry.options.dense_layers
                token = slice(place, place + 1)
                self._decoding[place] = _Seen(entry.view, token, length - 1, own, dense)

    def _settled(self, entry: RequestEntry, length: int) -> bool:
        self.settle(entry)
        if entry.view is None:
            return False
        if length <= entry.view.made:  # its last tokens were taken back
            entry.view = entry.view.unmade()
        return entry.view.made > 0

    def settle(self, entry: RequestEntry) -> None:
        """Make the view that the last step weighed, if it did."""
        if entry.view is not None:
            ours = self.layers.numbers[self.layers.ours]
            entry.view.settle(sorted(ours[ours >= entry.options.dense_layers].tolist()))

    # -- once per layer ------------------------------------------------------------------------

    def extended(self, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        """Prompts were read in a layer: q `[tokens, H, G, D]`, keys `[slots, H, D]`."""
        for seen in self._extending:
            self._see(seen, layer, q, keys, scale)

    def decoded(self, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        """Rows decoded in a layer: q `[rows, H, G, D]`, keys `[slots, H, D]`."""
        for seen in self._decoding.values():
            self._see(seen, layer, q, keys, scale)

    @staticmethod
    def _see(seen: _Seen, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        if layer < seen.dense_layers:
            return
        own, length = q[seen.tokens], len(seen.slots)
        seen.view.observe(layer, own, seen.first)
        if seen.view.is_due(length):
            seen.view.weigh(layer, keys, seen.slots, scale)

    def lists(self, layer: int, places: Sequence[int]) -> TokenLists:
        """What the views of decoding rows list in a layer."""
        rows = [self._decoding[place] for place in places]
        return lists_of([row.view.layers[layer] for row in rows], [row.slots for row in rows])
