"""Where views of requests lie on a GPU: runs of static buffers, so that captured graphs find them.

A view has a record, a run of queries from its first step on, and a run of kept tokens once it is
made. Writes are ordered on the forward stream before the step that reads them.
"""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from ...types import ViewShape

RECORD_HEAD = 3
"""Numbers of a record in front of its spans: made, first query, size of a ring."""


class Runs:
    """Runs of a buffer of `size` places: the first that is wide enough is taken."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)]

    def take(self, width: int) -> int | None:
        """First place of a run; None: there is none so wide."""
        for i, (first, last) in enumerate(self._free):
            if last - first >= width:
                self._free[i : i + 1] = [(first + width, last)] if last - first > width else []
                return first
        return None

    @property
    def widest(self) -> int:
        """Places of the widest run."""
        return max((last - first for first, last in self._free), default=0)

    def give(self, first: int, width: int) -> None:
        """A run is free again."""
        joined: list[tuple[int, int]] = []
        for begin, end in sorted([*self._free, (first, first + width)]):
            if joined and joined[-1][1] == begin:
                begin = joined.pop()[0]
            joined.append((begin, end))
        self._free = joined


@dataclass
class ViewPlace:
    """What a view owns.

    Attributes:
        number: of its record.
        queries: first place in the ring of its first layer.
        size: places of a layer's ring.
        kept: first place, and number, of its run of kept tokens.
        counts: by layer and KV head how many are kept; empty as long as it is not made.
        written: tokens of the context when it was made, as its record says.
    """

    number: int
    queries: int
    size: int
    kept: tuple[int, int] = (0, 0)
    counts: list[list[int]] = field(default_factory=list)
    written: int = 0


class ViewStore:
    """Hands out records and runs.

    Attributes:
        dropped: places that nobody owns any more; they are free when the next one is asked for.

    Args:
        buffers: `ViewBuffers` of the device.
        shape: their extents.
        heads: KV heads of this rank.
    """

    def __init__(self, buffers: Any, shape: ViewShape, heads: int) -> None:
        self.buffers, self.shape, self.heads = buffers, shape, heads
        self._numbers = list(range(shape.views))[::-1]
        self._queries, self._kept = Runs(shape.queries), Runs(shape.kept)
        self._bound: dict[int, int] = {}
        self.dropped: list[ViewPlace] = []

    # -- room ------------------------------------------------------------------------------

    def admit(self, size: int) -> ViewPlace | None:
        """Room for the last `size` queries of each layer of another request; None: none is left."""
        self._collect()
        first = self._queries.take(size * self.shape.layers) if self._numbers else None
        if first is None:
            return None
        place = ViewPlace(self._numbers.pop(), first, size)
        for index, value in enumerate((0, first, size)):
            self.buffers.records[place.number, index].fill_(value)
        return place

    def _collect(self) -> None:
        while self.dropped:
            place = self.dropped.pop()
            self.forget(place)
            self._queries.give(place.queries, place.size * self.shape.layers)
            self._numbers.append(place.number)

    def forget(self, place: ViewPlace) -> None:
        """A view is not made any more; what its record says is put right before the next step."""
        if place.kept[1]:
            self._kept.give(*place.kept)
        place.kept, place.counts = (0, 0), []

    def fits(self, place: ViewPlace, tokens: int) -> bool:
        """Whether a view finds room for as many kept tokens, over all layers and KV heads."""
        self._collect()
        return tokens <= max(place.kept[1], self._kept.widest)

    # -- what steps read -------------------------------------------------------------------

    def bind(self, row: int, place: ViewPlace | None) -> None:
        """Say whose view a row of `req_to_token` has."""
        number = -1 if place is None else place.number
        if self._bound.get(row, -1) != number:
            self._bound[row] = number
            self.buffers.of_request[row].fill_(number)
        if place is not None and place.written and not place.counts:
            place.written = 0
            self.buffers.records[place.number, 0].fill_(0)

    def write(self, place: ViewPlace, made: int, counts: list[list[int]]) -> bool:
        """Give a view room for as many kept tokens, by layer and KV head; False: there is none.

        Args:
            place: of the view.
            made: tokens of its context.
            counts: by layer of this rank; 0 in layers without a view.
        """
        self.forget(place)
        width = sum(map(sum, counts))
        first = self._kept.take(width)
        if first is None:
            return False
        place.kept, place.counts, place.written = (first, width), counts, made
        flat = [count for heads in counts for count in heads]
        begins = list(accumulate(flat, initial=first))[:-1]
        spans = [number for span in zip(begins, flat, strict=True) for number in span]
        record = torch.tensor([made, place.queries, place.size, *spans], dtype=torch.int32)
        self.buffers.records[place.number, : len(record)].copy_(record)
        return True

    # -- one layer of a view ---------------------------------------------------------------

    def ring(self, place: ViewPlace, layer: int) -> torch.Tensor:
        """Queries `[size, H * G * D]` of a layer, that of position p at p modulo the size."""
        first = place.queries + layer * place.size
        ring: torch.Tensor = self.buffers.queries[first : first + place.size]
        return ring

    def listed(self, place: ViewPlace, layer: int, length: int) -> torch.Tensor:
        """Positions int32 `[H, n]` that a view reads in a context of `length`, -1 behind them."""
        made, most = place.written, max(place.counts[layer])
        kept, count = self.run(self.buffers.kept, place, layer, most + length - made)
        nth = torch.arange(kept.shape[1], dtype=torch.int32, device=kept.device)
        since = nth - count + made
        return torch.where(nth < count, kept, since.masked_fill(since >= length, -1))

    def run(
        self, buffer: torch.Tensor, place: ViewPlace, layer: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each KV head has in a buffer, `[H, width]`, 0 behind it, and how many, `[H, 1]`."""
        first, count = self._spans(place, layer)
        nth = torch.arange(width, device=buffer.device)
        there = nth < count
        found = buffer[torch.where(there, first + nth, 0)]
        return found.masked_fill_(~there, 0), count

    def put(
        self, buffer: torch.Tensor, place: ViewPlace, layer: int, keep: torch.Tensor,
        values: torch.Tensor,
    ) -> None:  # fmt: skip
        """Fill the runs of a layer's KV heads with the `values` `[H, n]` that they `keep`, bool."""
        first, _ = self._spans(place, layer)
        where = torch.where(keep, first + keep.cumsum(-1) - 1, len(buffer) - 1)
        buffer.scatter_(0, where.flatten(), values.flatten())

    def _spans(self, place: ViewPlace, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each KV head's tokens begin, and how many: int32 `[H, 1]` each."""
        begin = RECORD_HEAD + 2 * layer * self.heads
        spans = self.buffers.records[place.number, begin : begin + 2 * self.heads].view(-1, 2)
        return spans[:, :1], spans[:, 1:]
