"""Makes views on a GPU, between two steps, by torch.

It takes the queries that steps have left in a view's rings and the keys that lie in the pool by
then, one view at a time and layer by layer, and waits for the device once, or twice where KV heads
share: to know how much each of them keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...selection.view import Room
from ...views.weighing import ListedKeys, Queries, weigh_heads
from ..layers import ModelLayers
from .device_view import DeviceView
from .store import ViewPlace, ViewStore


@dataclass(frozen=True)
class _Layer:
    """One layer of a view that is being made.

    Attributes:
        number: of the layer.
        nth: counted from this rank's first.
        positions: int32 `[H, n]` that it read, -1 behind them.
        ranked: float32 `[H, n]`, their scores; -inf for sinks and window.
        scores: float32 `[H, n]`, of these as well; None where nobody goes on from them.
        mass: float32 `[H, n]`, mean share of attention; None where nobody asks.
    """

    number: int
    nth: int
    positions: torch.Tensor
    ranked: torch.Tensor
    scores: torch.Tensor | None
    mass: torch.Tensor | None

    @property
    def always(self) -> torch.Tensor:
        """Sinks and window, bool `[H, n]`."""
        return (self.positions >= 0) & self.ranked.isinf()

    def best(self, rooms: torch.Tensor) -> torch.Tensor:
        """The best of each head, equal scores to the older token, with sinks and window.

        Args:
            rooms: int64 `[H]`.

        Returns:
            bool `[H, n]`.
        """
        order = self.ranked.sort(descending=True, stable=True).indices
        nth = torch.arange(order.shape[1], device=order.device)
        always = self.always
        return always.scatter(1, order, nth < rooms[:, None]) | always


class ViewMaker:
    """Makes the views of one scheduler's requests.

    Attributes:
        store: where they lie.

    Args:
        layers: of the model.
        scales: of the softmax, by number of each layer of this rank that can be sparse.
        pool: SGLang's KV pool.
        req_to_token: int32 `[requests, context]`.
        watched: whether somebody looks at every list.
    """

    def __init__(
        self,
        store: ViewStore,
        layers: ModelLayers,
        scales: Mapping[int, float],
        pool: Any,
        req_to_token: torch.Tensor,
        watched: bool = False,
    ) -> None:
        self.store, self._layers, self._scales = store, layers, scales
        self._pool, self._req_to_token, self._watched = pool, req_to_token, watched
        self._last = max(scales)

    def narrows(self, view: DeviceView) -> bool:
        """Whether there can be a layer of this rank that a view narrows."""
        return view.options.dense_layers <= self._last

    def numbers(self, view: DeviceView) -> list[int]:
        """Layers of this rank that a view narrows."""
        dense = view.options.dense_layers
        return [n for n in self._scales if n >= dense and self._layers.is_ours(n)]

    def make(self, view: DeviceView, row: int) -> None:
        """Make a view that is due; where there is no room, later.

        Args:
            view: has queries, and was read from `row`.
            row: of `req_to_token`.
        """
        place, numbers = view.place, self.numbers(view)
        assert place is not None, "queries of a view without a place"
        budget = view.options.budget_tokens(view.due)
        room = budget * len(numbers) * self.store.heads
        if not numbers or not self.store.fits(place, room):
            view.due = 0
            return
        layers = [self._weighed(view, place, number, row) for number in numbers]
        rooms = view.method.divide([layer.ranked for layer in layers], self._room(view, numbers))
        counts = rooms + torch.stack([layer.always.sum(-1) for layer in layers])
        every = [[0] * self.store.heads for _ in range(self.store.shape.layers)]
        for layer, own in zip(layers, counts.tolist(), strict=True):
            every[layer.nth] = own
        if not self.store.write(place, view.due, every):
            view.unmade()
            return
        for layer, own in zip(layers, rooms, strict=True):
            self._keep(view, place, layer, layer.best(own))
        view.was_made()

    def _room(self, view: DeviceView, numbers: Sequence[int]) -> Room:
        dense, options = view.options.dense_layers, view.options
        ours = self._layers.numbers[self._layers.ours].tolist()
        stages = sorted(number for number in ours if number >= dense)
        always = options.sink + options.window
        return Room(
            tokens=options.budget_tokens(view.due) - always,
            always=always,
            layers=[stages.index(number) for number in numbers],
            num_layers=len(stages),
            block=view.block,
            options=options,
        )

    def _weighed(self, view: DeviceView, place: ViewPlace, number: int, row: int) -> _Layer:
        """Score what a layer reads in the context for which the view is due."""
        length, nth = view.due, number - self.store.shape.first_layer
        keys = self._pool.get_key_buffer(number)
        if view.made:
            positions = self.store.listed(place, nth, length)
        else:
            positions = torch.arange(length, dtype=torch.int32, device=keys.device)
            positions = positions.expand(keys.shape[1], -1)
        slots = self._req_to_token[row, :length][positions.clamp(min=0).long()].long()
        mass = torch.zeros(positions.shape, device=keys.device) if view.options.kept_map else None
        goes_on = bool(view.made) and view.method.accumulates
        scores = weigh_heads(
            view.method, self._queries(view, place, number, keys),
            ListedKeys(keys, slots, positions), length - view.options.window,
            1 if goes_on else view.options.pooling, mass,
        )  # fmt: skip
        if goes_on:
            most = max(place.counts[nth])
            before, _ = self.store.run(self.store.buffers.scores, place, nth, most)
            scores[:, :most] += before
        candidate = (positions >= view.options.sink) & (positions < length - view.options.window)
        summed = scores.clone() if view.method.accumulates else None
        ranked = scores.masked_fill_(~candidate, -torch.inf)
        return _Layer(number, nth, positions, ranked, summed, mass)

    def _queries(
        self, view: DeviceView, place: ViewPlace, number: int, keys: torch.Tensor
    ) -> Queries:
        at = view.positions()
        positions = torch.arange(at.start, at.stop, device=keys.device)
        ring = self.store.ring(place, number - self.store.shape.first_layer)
        q = ring[positions % place.size].view(len(at), keys.shape[1], -1, keys.shape[2])
        return Queries(q, positions, self._scales[number])

    def _keep(self, view: DeviceView, place: ViewPlace, layer: _Layer, keep: torch.Tensor) -> None:
        buffers, counts = self.store.buffers, place.counts[layer.nth]
        self.store.put(buffers.kept, place, layer.nth, keep, layer.positions)
        if layer.scores is not None:
            self.store.put(buffers.scores, place, layer.nth, keep, layer.scores)
        lists = mass = None
        if view.options.kept_map or self._watched:
            lists = self.store.run(buffers.kept, place, layer.nth, max(counts))[0].cpu()
        if layer.mass is not None:
            mass = layer.mass.masked_fill(~keep, 0.0).sum(-1).tolist()
        view.keeps(layer.number, counts, lists, mass)
