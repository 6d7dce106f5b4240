"""The last queries of a request, by position, layer by layer."""

import torch


class LastQueries:
    """A ring of the newest queries of one layer.

    Args:
        size: queries that are held.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ring: torch.Tensor | None = None
        self._end = 0
        self._first = 0

    @property
    def end(self) -> int:
        """One past the newest position."""
        return self._end

    def __len__(self) -> int:
        """Queries that are held."""
        return self._end - self._first

    def add(self, q: torch.Tensor, first: int) -> None:
        """Note queries `[n, H, G, D]` of the positions from `first` on.

        They replace what was noted of these and of later positions; a gap forgets what was before.
        """
        end = first + len(q)
        if not self._first <= first <= self._end:
            self._first = first
        if self._ring is None:
            self._ring = q.new_empty(self._size, *q.shape[1:])
        begin = max(first, end - self._size)
        if end - begin == 1:  # of a step that decodes
            self._ring[begin % self._size] = q[-1]
        else:
            self._ring[torch.arange(begin, end) % self._size] = q[begin - first :]
        self._first, self._end = max(self._first, end - self._size), end

    def last(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries `[n, H, G, D]` of the newest positions, at most `count`, and these, `[n]`."""
        assert self._ring is not None, "no query was seen"
        positions = torch.arange(max(self._first, self._end - count), self._end)
        return self._ring[positions % self._size], positions
