"""Cells added up: per method and length for the table, per square for the map."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .results import Cell

Tally = dict[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class MethodScore:
    """One method over all cells.

    Attributes:
        method: its name.
        right: questions answered right.
        asked: questions asked.
        by_length: right and asked, per length in tokens.
        read: share of the KV cache that decode read, 0 to 1, all cells together.
        lost: rows of the map where a question was missed.
    """

    method: str
    right: int
    asked: int
    by_length: dict[int, tuple[int, int]]
    read: float
    lost: tuple[int, ...]

    @property
    def share(self) -> float:
        """Right of asked, 0 to 1."""
        return self.right / self.asked


def ranking(cells: Sequence[Cell]) -> list[MethodScore]:
    """Methods, the best first; of two as good the one that reads less."""
    scores = []
    for method in sorted({cell.method for cell in cells}):
        own = [cell for cell in cells if cell.method == method]
        there = sum(cell.tokens_in_context for cell in own)
        lengths = sorted({cell.length for cell in own})
        scores.append(
            MethodScore(
                method,
                *_count(own),
                {length: _count(c for c in own if c.length == length) for length in lengths},
                sum(cell.tokens_attended for cell in own) / there if there else 1.0,
                tuple(sorted({cell.depth for cell in own if not cell.right})),
            )
        )
    return sorted(scores, key=lambda score: (-score.share, score.read))


def tally(cells: Iterable[Cell]) -> Tally:
    """Right and asked, by length and depth."""
    squares: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        squares.setdefault((cell.length, cell.depth), []).append(cell)
    return {square: _count(own) for square, own in squares.items()}


def table(cells: Sequence[Cell]) -> str:
    """The ranking as text, one line per method."""
    lengths = sorted({cell.length for cell in cells})
    rows = [("method", *map(short, lengths), "right", "KV read")]
    for score in ranking(cells):
        columns = (_share(*score.by_length.get(length, (0, 0))) for length in lengths)
        total = f"{score.right} of {score.asked}"
        rows.append((score.method, *columns, total, f"{score.read:.1%}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join((row[0].ljust(widths[0]), *rest)))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def short(tokens: int) -> str:
    """`8k` for 8192, else the number."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _share(right: int, asked: int) -> str:
    return f"{right / asked:.0%}" if asked else "-"


def _count(cells: Iterable[Cell]) -> tuple[int, int]:
    rights = [cell.right for cell in cells]
    return sum(rights), len(rights)
