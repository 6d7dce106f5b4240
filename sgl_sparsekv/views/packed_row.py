"""A row whose kept tokens were moved together, so that the rest of its pages could go back."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class PackedRow:
    """Where a request's row still holds slots.

    Before `begin` and from `end` on, a place of the row holds the token of its position. What was
    kept of the positions between lies in the places from `begin` to `filled`, other positions for
    every KV head of every layer. The places from `filled` to `end` hold nothing.

    Attributes:
        begin: a multiple of the page size, as the others are.
        filled: not below `begin`.
        end: not below `filled`.
    """

    begin: int
    filled: int
    end: int

    def held(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ascending half-open ranges of places without those that hold nothing."""
        parts = []
        for first, last in ranges:
            parts += [(first, min(last, self.filled)), (max(first, self.end), last)]
        return [(first, last) for first, last in parts if first < last]
