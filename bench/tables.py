"""Markdown tables, and numbers with as many digits as a measurement has."""

from collections.abc import Iterable, Sequence


def number(value: float | None) -> str:
    """Three digits; whole numbers from 100 on; empty for None."""
    if value is None:
        return ""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.9995 else f"{value:.3f}"


def tokens(count: int) -> str:
    """A context, in units of 1024 where that is exact."""
    return f"{count // 1024}k" if count % 1024 == 0 else f"{count:,}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; None is an empty cell, floats are rounded for reading."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(map(_cell, row)) + " |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)
