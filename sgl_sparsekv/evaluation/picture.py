"""Heat maps drawn by hand: one per method, lengths across, depths down; one file, no network."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from ..tooling.figure import STYLE
from .kept import KEPT
from .results import Cell, read
from .summary import Score, kept_squares, ranking, short, squares

COLUMNS = 3
LEFT, TOP, RIGHT, BOTTOM = 64, 52, 16, 30
SQUARE, LOW = 46, 24
EXTRA = ".fig .edge{stroke:var(--back);stroke-width:2}.fig .sum{font-size:11px}"


def write_picture(results: Path) -> Path | None:
    """Draw the map of a needle run beside its file; None for other evaluations."""
    header, cells = read(results)
    if header["task"] != "needle" or not cells:
        return None
    path = results.with_suffix(".svg")
    path.write_text(needle_picture(cells, header["depths"]))
    return path


def needle_picture(cells: Sequence[Cell], depths: int) -> str:
    """A panel per way of reading, the best first; from red (wrong) over yellow to green (right).

    Squares of a method that keeps views also say how much of the needle it kept.

    Args:
        cells: of a needle run; squares without one stay empty.
        depths: rows.
    """
    lengths = sorted({cell.length for cell in cells})
    scores = ranking(cells)
    width = LEFT + max(200, SQUARE * len(lengths)) + RIGHT
    height = TOP + LOW * depths + BOTTOM
    panels = []
    for i, score in enumerate(scores):
        own = [c for c in cells if (c.method, c.budget) == (score.method, score.budget)]
        x, y = i % COLUMNS * width, i // COLUMNS * height
        panel = _panel(score, own, lengths, depths)
        panels.append(f'<g transform="translate({x} {y})">{panel}</g>')
    across, down = width * min(COLUMNS, len(scores)), height * -(-len(scores) // COLUMNS)
    return (
        f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" '
        f'role="img" aria-label="needles found, by method, length and depth">'
        f"<style>{STYLE}{EXTRA}</style>"
        f'<rect class="back" width="{across}" height="{down}"/>{"".join(panels)}</svg>\n'
    )


def _panel(score: Score, cells: Sequence[Cell], lengths: Sequence[int], depths: int) -> str:
    found, kept = squares(cells), kept_squares(cells)
    across = max(200, SQUARE * len(lengths))
    width = across / len(lengths)
    parts = [
        f'<text class="title" x="{LEFT}" y="22">{escape(score.name)}</text>',
        f'<text class="soft sum" x="{LEFT}" y="40">{score.value:.0%} of {score.asked} right, '
        f"{score.read:.1%} of KV read</text>",
    ]
    if KEPT in score.detail:
        right = f'x="{LEFT + across}" y="22" text-anchor="end"'
        parts.append(f'<text class="soft sum" {right}>kept {score.detail[KEPT]:.0%}</text>')
    for row in range(depths):
        y = TOP + row * LOW
        if depths <= 12 or row % (depths // 10) == 0:
            label = f"{(row + 0.5) / depths:.0%}"
            parts.append(_text(LEFT - 8, y + LOW / 2 + 4, label, "end"))
        for column, length in enumerate(lengths):
            square = found.get((length, row), (0.0, 0))
            parts.append(_square(LEFT + column * width, y, width, *square, kept.get((length, row))))
    for column, length in enumerate(lengths):
        x = LEFT + (column + 0.5) * width
        parts.append(_text(x, TOP + depths * LOW + 18, short(length), "middle"))
    parts.append(_text(LEFT - 8, TOP + depths * LOW + 18, "depth", "end"))
    return "".join(parts)


def _square(x: float, y: float, width: float, value: float, asked: int, kept: float | None) -> str:
    """One square; in it the verdict, and how much of the needle a view kept where that is known."""
    box = f'class="{{}}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LOW}" rx="3"'
    if not asked:
        return f"<rect {box.format('field edge')}/>"
    if value in (0.0, 1.0):
        kind = f"<rect {box.format('good edge' if value else 'bad edge')}/>"
    else:
        hue = f"fill:hsl({15 + 95 * value:.0f} 60% 42%)"
        kind = f'<rect {box.format("edge")} style="{hue}"/>'
    label = ("✓" if value else "✗") if value in (0.0, 1.0) and asked == 1 else f"{value:.0%}"
    middle = f'x="{x + width / 2:.1f}" y="{y + LOW / 2 + 4}" text-anchor="middle"'
    if kept is not None:
        return f'{kind}<text class="on sum" {middle}>{label} {kept:.0%}</text>'
    return f'{kind}<text class="on" {middle}>{label}</text>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
