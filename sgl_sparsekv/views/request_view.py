"""The view of one request: which tokens every KV head of every layer still reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config import RequestOptions
from ..selection import load_method
from ..selection.view import Room, Viewed, ViewMethod
from .attention import shares_of
from .layer_view import LayerView
from .packed_row import PackedRow
from .queries import LastQueries


@dataclass(frozen=True)
class _Weighed:
    """What one layer read when a view was due.

    Attributes:
        positions: int32 `[H, n]`, -1 behind them.
        scores: float32 `[H, n]` of these.
        places: int32 `[H, n]`, where they lie in a row that is packed.
        mass: float32 `[H, n]`, mean share of attention of these, where the request asks.
    """

    positions: torch.Tensor
    scores: torch.Tensor
    places: torch.Tensor | None
    mass: torch.Tensor | None


class RequestView:
    """What one request keeps; everything as long as `made` is 0.

    It is made in two halves: every layer weighs what it reads when it is run, and before the next
    step `settle` divides the budget over all of them.

    Attributes:
        made: tokens of the context when the view was made: younger ones are read as they come.
        layers: by number of the layer.
        packed: where the row holds slots, if what is kept was moved together; else None.

    Args:
        method: how tokens are chosen.
        options: of the request.
        prompt: tokens of the prompt.
        block: tokens of a block, where whole blocks are given up.
    """

    def __init__(self, method: ViewMethod, options: Viewed, prompt: int, block: int) -> None:
        self.made = 0
        self.layers: dict[int, LayerView] = {}
        self.packed: PackedRow | None = None
        self._method, self._options = method, options
        self._prompt, self._block = prompt, block
        self._queries: dict[int, LastQueries] = {}
        self._weighed: dict[int, _Weighed] = {}
        self._mass: dict[int, list[float]] = {}
        self._length = 0

    @classmethod
    def of(cls, options: RequestOptions, prompt: int, block: int) -> "RequestView | None":
        """That of a request whose method keeps one, else None."""
        method = load_method(options.method)
        return cls(method, options, prompt, block) if isinstance(method, ViewMethod) else None

    def unmade(self) -> "RequestView":
        """That of the same request before it was read.

        Never where the row is packed: what it left out is gone.
        """
        assert self.packed is None, "a packed row cannot be read as a whole"
        return RequestView(self._method, self._options, self._prompt, self._block)

    @property
    def first_needed(self) -> int | None:
        """First position of the prompt whose query is still to be seen; None: none is."""
        seen, begin = self._end, max(0, self._prompt - self._options.observation_window)
        return None if seen >= self._prompt else max(seen, begin)

    @property
    def _end(self) -> int:
        """One past the newest position whose query every layer saw."""
        return min((queries.end for queries in self._queries.values()), default=0)

    @property
    def _held(self) -> int:
        """How many queries are held."""
        return max((len(queries) for queries in self._queries.values()), default=0)

    @property
    def _ring_size(self) -> int:
        """Queries of a layer that are held at most."""
        size = self._options.observation_window
        return max(size, self._options.renew_every) if self._method.accumulates else size

    def is_due(self, length: int) -> bool:
        """Whether the step that brings the context to `length` tokens makes the view, once a layer
        observed its queries: the first one answers for those behind it.

        Where somebody else read the prompt, it waits until the answer's queries fill the window.
        """
        if self.made:
            every = self._options.renew_every
            wanted = every > 0 and length - self.made >= every
        else:
            slack = self._options.renew_every or self._options.observation_window
            more = 1 if length == self._prompt else slack
            wanted = length >= self._options.budget_tokens(length) + more
        if not wanted or length < self._prompt:
            return False
        return self._held >= min(self._options.observation_window, length)

    def told(self) -> dict[str, Any]:
        """For a response, as `docs/views.md` lists it: what was kept by layer and KV head."""
        layers = {str(number): view for number, view in sorted(self.layers.items())}
        told: dict[str, Any] = {
            "made": self.made,
            "since": max(0, self._end - self.made),
            "kept": {number: view.counts.tolist() for number, view in layers.items()},
            "mass": None,
            "map": None,
        }
        if self._options.kept_map:
            mass = sorted(self._mass.items())
            told["mass"] = {str(number): [round(one, 6) for one in own] for number, own in mass}
            told["map"] = {number: view.stretches() for number, view in layers.items()}
        return told

    def end(self) -> None:
        """The request ended."""

    # -- once per layer ------------------------------------------------------------------------

    def observe(self, layer: int, q: torch.Tensor, first: int) -> None:
        """Note queries `[n, H, G, D]` of the positions from `first` on."""
        self._queries.setdefault(layer, LastQueries(self._ring_size)).add(q, first)

    def weigh(self, layer: int, keys: torch.Tensor, slots: torch.Tensor, scale: float) -> None:
        """Score what the layer reads by the queries that were observed.

        Args:
            layer: its number.
            keys: `[slots, H, D]`, the pool's K of this layer.
            slots: int `[L]`, slot of each position of the context.
            scale: softmax scale.
        """
        length, view = len(slots), self.layers.get(layer)
        goes_on = view is not None and self._method.accumulates
        since = length - self.made if goes_on else self._options.observation_window
        q, at = self._queries[layer].last(since)
        if view is None:
            listed = torch.arange(length, dtype=torch.int32).expand(keys.shape[1], -1)
            places = listed
        else:
            listed, _ = view.listed(length)
            places = view.lying(listed)
        scores = torch.zeros(listed.shape)
        mass = torch.zeros(listed.shape) if self._options.kept_map else None
        if view is not None and view.scores is not None:
            scores[:, : view.scores.shape[1]] = view.scores
        for head, positions in enumerate(listed.long()):
            known = positions[positions >= 0]
            own = keys[slots[places[head, : len(known)].long()].long(), head]
            shares = shares_of(q[:, head], at, own, known, scale)
            scores[head, : len(known)] += self._scored(shares, known, goes_on, length)
            if mass is not None:
                mass[head, : len(known)] = shares.mean((0, 1))
        lie = None if self.packed is None else places
        self._weighed[layer], self._length = _Weighed(listed, scores, lie, mass), length

    def _scored(
        self, shares: torch.Tensor, positions: torch.Tensor, goes_on: bool, length: int
    ) -> torch.Tensor:
        """Scores `[T]`; the window, which is kept anyway, is spread over no others."""
        pooling = 1 if goes_on else self._options.pooling
        old = int((positions < length - self._options.window).sum())
        parts = (shares[..., :old], pooling), (shares[..., old:], 1)
        return torch.cat([self._method.weigh(*part) for part in parts if part[0].numel()])

    # -- between two steps ---------------------------------------------------------------------

    def settle(self, numbers: Sequence[int]) -> None:
        """Divide the budget over what was weighed, if anything was.

        Args:
            numbers: of all layers that have views, other stages' too.
        """
        whole = self._weighed.keys() == self._queries.keys()
        if not (self._weighed and whole):
            self._weighed.clear()  # a step that was broken off
            return
        length, options = self._length, self._options
        always = options.sink + options.window
        ranked = [self._ranked(one) for one in self._weighed.values()]
        room = Room(
            tokens=options.budget_tokens(length) - always,
            always=always,
            layers=[numbers.index(number) for number in self._weighed],
            num_layers=len(numbers),
            block=self._block,
            options=options,
        )
        counts = self._method.divide(ranked, room)
        for (number, weighed), scores, rooms in zip(
            self._weighed.items(), ranked, counts.tolist(), strict=True
        ):
            keep = self._keep(weighed, scores, rooms)
            self.layers[number] = self._kept(weighed, keep)
            if weighed.mass is not None:
                self._mass[number] = weighed.mass.masked_fill(~keep, 0.0).sum(-1).tolist()
        self.made = length
        self._weighed.clear()

    def _ranked(self, weighed: _Weighed) -> torch.Tensor:
        """Scores `[H, n]` of the candidates: -inf for sinks and window."""
        positions, end = weighed.positions, self._length - self._options.window
        candidate = (positions >= self._options.sink) & (positions < end)
        return weighed.scores.masked_fill(~candidate, -torch.inf)

    @staticmethod
    def _keep(weighed: _Weighed, ranked: torch.Tensor, rooms: Sequence[int]) -> torch.Tensor:
        """Bool `[H, n]`: the best of each head, equal scores to the older token, with sinks and
        window."""
        keep = (weighed.positions >= 0) & ranked.isinf()
        for head, room in enumerate(rooms):
            best = ranked[head].sort(descending=True, stable=True).indices[:room]
            keep[head, best] = True
        return keep

    def _kept(self, weighed: _Weighed, keep: torch.Tensor) -> LayerView:
        heads = range(len(keep))

        def kept(values: torch.Tensor | None) -> list[torch.Tensor] | None:
            return None if values is None else [values[head, keep[head]] for head in heads]

        positions = [weighed.positions[head, keep[head]] for head in heads]
        scores = kept(weighed.scores) if self._method.accumulates else None
        return LayerView.of(self._length, positions, scores, kept(weighed.places))

    # -- packing -------------------------------------------------------------------------------

    def width(self, begin: int, end: int) -> int:
        """Places that hold what is kept of the positions from `begin` to below `end`."""
        views = self.layers.values()
        return max(int(view.between(begin, end).sum(-1).max()) for view in views)

    def pack(self, packed: PackedRow) -> None:
        """What is kept of the positions from `packed.begin` to below `packed.end` was moved."""
        for view in self.layers.values():
            view.pack(packed.begin, packed.end)
        self.packed = packed

    def unpack(self) -> None:
        """The row was given back; a request that was retracted is read anew, at its positions."""
        self.packed = None
        for view in self.layers.values():
            view.unpack()
        self._weighed = {
            number: replace(weighed, places=None) for number, weighed in self._weighed.items()
        }
