"""Who holds a selection on the device, and where: what `FusedDecode` plans such rows from.

Each request that selects every r-th step has a place there. As only rows of a step need one, there
are no more than such a step has; a request that has none gets that of the one that decoded longest
ago, which then selects when it comes again.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch

from .request_table import RequestEntry

NOWHERE = -1
MOST_OWNERS = 2**31 - 1
"""Numbers of requests begin anew behind it."""


class HeldPlaces:
    """Keeps the device's table of places equal to the requests that own the rows.

    A request whose options change, or that was retracted, is another one to the device: what it
    held is of no use any more. Writes are ordered as those of the table of options.

    Args:
        asked: int32 `[requests, 3]`, the device's: steps of a period, place or -1, and whose it is.
        places: that there are.
    """

    def __init__(self, asked: torch.Tensor, places: int) -> None:
        self._device = asked
        pinned = asked.device.type == "cuda"
        self._asked = torch.zeros(asked.shape, dtype=asked.dtype, pin_memory=pinned)
        self._free = list(range(places))[::-1]
        self._places: dict[int, int] = {}
        self._owners: dict[int, tuple[Any, ...]] = {}
        self._numbers = count()

    def bind(self, rows: Sequence[int], entries: Sequence[RequestEntry]) -> None:
        """Say of the rows of a step whose they are, and where they hold what they select."""
        for row, entry in zip(rows, entries, strict=True):
            every = entry.options.reselect_every
            place = self._places.pop(row, NOWHERE)
            if every > 1 and place < 0:
                place = self._take(rows)
            elif every == 1 and place >= 0:
                self._free.append(place)
                place = NOWHERE
            if place >= 0:
                self._places[row] = place  # behind all others: it decodes now
            owner = (entry.serial, entry.retractions, entry.options, place)
            if self._owners.get(row) != owner:
                self._owners[row] = owner
                self._write(row, every, place)

    def _take(self, rows: Sequence[int]) -> int:
        """A free place, or that of the row that decoded longest ago; of this step's rows none."""
        if self._free:
            return self._free.pop()
        row = next((row for row in self._places if row not in rows), None)
        if row is None:
            return NOWHERE
        del self._owners[row]
        self._write(row, 1, NOWHERE)
        return self._places.pop(row)

    def _write(self, row: int, every: int, place: int) -> None:
        number = next(self._numbers) % MOST_OWNERS
        self._asked[row] = torch.tensor([every, place, number], dtype=torch.int32)
        self._device[row].copy_(self._asked[row], non_blocking=True)
