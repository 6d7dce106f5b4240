"""Scores held between steps, for requests that reselect only every r-th step.

What is held are the scores of logical units, never physical ones: a running request's pages can
change between steps. Units that fill in between have no score yet; while the window covers them
they are kept anyway, behind it they rank last until the next selection.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch


@dataclass
class _Held:
    serial: int
    length: int
    layers: dict[int, torch.Tensor] = field(default_factory=dict)


class HeldScores:
    """Scores by row of `req_to_token` and layer."""

    def __init__(self) -> None:
        self._rows: dict[int, _Held] = {}

    def begin_step(self, row: int, serial: int, length: int, every: int) -> None:
        """Keep what the row holds if it is still of use in the step of `length` tokens."""
        if every == 1:
            self._rows.pop(row, None)
            return
        held = self._rows.get(row)
        if held is None or held.serial != serial or not held.length <= length < held.length + every:
            self._rows[row] = _Held(serial, length)

    def any(self, rows: Iterable[int]) -> bool:
        """Whether one of the rows holds scores, or will."""
        return not self._rows.keys().isdisjoint(rows)

    def holds(self, row: int, layer: int) -> bool:
        """Whether scores of the layer are held for the row."""
        held = self._rows.get(row)
        return held is not None and layer in held.layers

    def store(self, row: int, layer: int, scores: torch.Tensor) -> None:
        """Hold scores `[H, U]` of one layer, if the row holds any."""
        if row in self._rows:
            self._rows[row].layers[layer] = scores.clone()

    def load(self, row: int, layer: int, out: torch.Tensor) -> None:
        """Fill `out` `[H, U]` with held scores, -inf where none are held."""
        held = self._rows[row].layers[layer]
        width = min(held.shape[-1], out.shape[-1])
        out.fill_(-torch.inf)
        out[:, :width] = held[:, :width]
