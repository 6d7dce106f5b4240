"""Scores held between steps, for requests that reselect only every r-th step.

What is held are the scores of logical units, never physical ones: a running request's pages can
change between steps. Units that fill in between have no score yet; while the window covers them
they are kept anyway, behind it they rank last until the next selection.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import torch

from ..types import Ranking


@dataclass
class _Held:
    owner: Hashable
    length: int
    layers: dict[int, Ranking] = field(default_factory=dict)


class HeldScores:
    """Scores by row of `req_to_token` and layer."""

    def __init__(self) -> None:
        self._rows: dict[int, _Held] = {}

    def begin_step(self, row: int, owner: Hashable, length: int, every: int) -> None:
        """Keep what the row holds if it is still of use in the step of `length` tokens.

        It is of no use to another `owner`: another request, or the same behind a retraction. Steps
        are counted from the one that has selected, which need not be a request's first.
        """
        if every == 1:
            self._rows.pop(row, None)
            return
        held = self._rows.get(row)
        known = held is not None and held.layers and held.owner == owner
        if held is None or not known or not held.length <= length < held.length + every:
            self._rows[row] = _Held(owner, length)

    def any(self, rows: Iterable[int]) -> bool:
        """Whether one of the rows holds scores, or will."""
        return not self._rows.keys().isdisjoint(rows)

    def holds(self, row: int, layer: int) -> bool:
        """Whether scores of the layer are held for the row."""
        held = self._rows.get(row)
        return held is not None and layer in held.layers

    def store(self, row: int, layer: int, ranking: Ranking) -> None:
        """Hold scores `[H, U]` of one layer and the lowest that is read, if the row holds any."""
        if row in self._rows:
            lowest = None if ranking.lowest is None else ranking.lowest.clone()
            self._rows[row].layers[layer] = Ranking(ranking.scores.clone(), lowest)

    def load(self, row: int, layer: int, out: Ranking) -> None:
        """Fill `out` with what is held, its scores `[H, U]` with -inf where none are."""
        held = self._rows[row].layers[layer]
        width = min(held.scores.shape[-1], out.scores.shape[-1])
        out.scores.fill_(-torch.inf)
        out.scores[:, :width] = held.scores[:, :width]
        if out.lowest is not None:
            assert held.lowest is not None, "a request keeps its options"
            out.lowest.copy_(held.lowest)
