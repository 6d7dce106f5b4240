"""What a haystack is, whoever makes it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

MAX_DEPTHS = 100


@dataclass(frozen=True)
class Needle:
    """One question about a haystack, whose answer may take several needles.

    Attributes:
        place: share of the document before the needle that decode must find, 0 to 1; the first of
            several.
        question: text that follows the document.
        parts: of the answer, in order.
        tokens: new tokens to ask for.
        exact: the parts must be all that is said; else they must occur in it.
        spans: where in the text what must be found stands: first character, and one past the last.
    """

    place: float
    question: str
    parts: tuple[str, ...]
    tokens: int
    exact: bool
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Haystack:
    """A document and one question per depth; all share the document as a prefix."""

    text: str
    needles: tuple[Needle, ...]


def spans_of(text: str, pieces: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Where each piece stands in a text: first character, and one past the last."""
    starts = [(text.index(piece), len(piece)) for piece in pieces]
    return tuple((start, start + size) for start, size in starts)


class Builder(Protocol):
    """Makes the document of one column of the map."""

    def __call__(self, length: int, depths: int, needles: int, seed: int) -> Haystack:
        """A document that, with question and answer, takes at most `length` tokens.

        Args:
            length: in tokens.
            depths: rows of the map; row i's first needle lies in part i of so many.
            needles: per answer.
            seed: the same gives the same.

        Raises:
            ValueError: `length` is too short for so many needles.
        """
        ...
