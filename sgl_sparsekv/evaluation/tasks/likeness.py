"""How alike two texts are, by characters, and how often a text repeats itself."""

from collections.abc import Sequence

GRAM = 4
"""Tokens of what is looked for again (seq-rep-4 of arXiv 1908.04319)."""


def shared(said: str, wanted: str) -> int:
    """Characters that both begin with."""
    pairs = zip(said, wanted, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(said), len(wanted)))


def prefix(said: str, wanted: str) -> float:
    """Share of `wanted` that `said` begins with; of nothing, nothing was lost."""
    return shared(said, wanted) / len(wanted) if wanted else 1.0


def alike(said: str, wanted: str) -> float:
    """Edit similarity: 1 less the edits between both, over the longer one's characters."""
    longer = max(len(said), len(wanted))
    return 1.0 - edits(said, wanted) / longer if longer else 1.0


def edits(a: str, b: str) -> int:
    """Least insertions, deletions and replacements that make one of the other.

    A column of the table of distances is two integers, a bit per character of `a`: where it rises
    and where it falls (Myers 1999, in the form of Hyyrö 2003).
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)
    for letter in b:
        match = places.get(letter, 0)
        level = (((match & rises) + rises) ^ rises) | match | falls
        up, down = falls | (~(level | rises) & every), rises & level
        distance += bool(up & last) - bool(down & last)
        up = up << 1 | 1
        rises, falls = ((down << 1) | ~(level | up)) & every, up & level & every
    return distance


def repeated(ids: Sequence[int]) -> float:
    """Share of a text's runs of `GRAM` tokens that occur in it before."""
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
