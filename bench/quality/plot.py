"""Error against bytes, drawn by hand: one panel per model, one line per method."""

import math
from collections.abc import Sequence
from html import escape

from bench.quality.results import Row

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 460, 330, 56, 44, 44, 190
PLOT_W, PLOT_H = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM
COLOURS = (
    *("#2f6fde", "#8a5cd6", "#d9822b", "#118a4e", "#7cc29d", "#cf2f2f", "#e58f8f", "#b5179e"),
    *("#8a6d3b", "#6a7280", "#aab2bf"),
)
STYLE = """
.fig{--ink:#1f2430;--soft:#6a7280;--rule:#e3e6eb;--back:#fff;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.fig{--ink:#e8eaee;--soft:#9aa3b2;--rule:#323947;--back:#13161c}}
.fig .back{fill:var(--back)}.fig text{fill:var(--ink)}.fig .soft{fill:var(--soft)}
.fig .title{font-weight:600;font-size:14px}.fig .rule{stroke:var(--rule);fill:none}
.fig .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.fig .bound{stroke-dasharray:4 3}
"""
Panel = tuple[str, Sequence[Row]]
Span = tuple[float, float]
"""Log10 of the ends of an axis."""


def error_plot(panels: Sequence[Panel], methods: Sequence[str]) -> str:
    """One panel for each (title, rows of one context), axes logarithmic, the same bytes in each.

    Args:
        panels: their rows at equal budgets are the points, at what they really read.
        methods: names of variants to draw; those that begin with "oracle" are bounds, dashed.
    """
    rows = [row for _, some in panels for row in some if row.method in methods and row.share]
    xs = _decades([row.share or 1 for row in rows])
    body = "".join(
        f'<g transform="translate({i * WIDTH} 0)">{_panel(title, some, methods, xs)}</g>'
        for i, (title, some) in enumerate(panels)
    )
    width = len(panels) * WIDTH + LEGEND
    return (
        f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        f'role="img" aria-label="Error of the attention output against bytes read">'
        f'<style>{STYLE}</style><rect class="back" width="{width}" height="{HEIGHT}"/>{body}'
        f'<g transform="translate({len(panels) * WIDTH} 0)">{_legend(methods)}</g></svg>\n'
    )


def _panel(title: str, rows: Sequence[Row], methods: Sequence[str], xs: Span) -> str:
    ys = _decades([_error(row) for row in rows if row.method in methods and row.share])
    parts = [f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>', _axes(xs, ys)]
    for method, colour in zip(methods, COLOURS, strict=False):
        points = sorted(
            (_x(row.share, xs), _y(_error(row), ys))
            for row in rows
            if row.method == method and row.equal == "budget" and row.share
        )
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        kind = "line bound" if method.startswith("oracle") else "line"
        parts.append(f'<path class="{kind}" stroke="{colour}" d="M{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points]
    return "".join(parts)


def _axes(xs: Span, ys: Span) -> str:
    parts = []
    for tick in _ticks(xs):
        x = _x(tick, xs)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP}v{PLOT_H}"/>')
        parts.append(_text(x, TOP + PLOT_H + 18, f"{tick * 100:g} %", "middle"))
    for tick in _ticks(ys):
        y = _y(tick, ys)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}h{PLOT_W}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", "end"))
    parts.append(_text(LEFT + PLOT_W, HEIGHT - 8, "bytes read, of dense attention's", "end"))
    parts.append(_text(LEFT, TOP - 5, "relative error", "start"))
    return "".join(parts)


def _legend(methods: Sequence[str]) -> str:
    parts = []
    for i, (method, colour) in enumerate(zip(methods, COLOURS, strict=False)):
        y = TOP + 10 + i * 20
        kind = "line bound" if method.startswith("oracle") else "line"
        parts.append(f'<path class="{kind}" stroke="{colour}" d="M0 {y}h22"/>')
        parts.append(f'<text x="28" y="{y + 4}">{escape(method)}</text>')
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _decades(values: Sequence[float]) -> Span:
    """Log10 of the least and greatest, rounded outwards to thirds of a decade."""
    low, high = (math.log10(f(values)) for f in (min, max)) if values else (-2, 0)
    return math.floor(low * 3) / 3, max(math.ceil(high * 3) / 3, math.floor(low * 3) / 3 + 1 / 3)


def _ticks(span: Span) -> list[float]:
    found = [m * 10.0**e for e in range(-5, 2) for m in (1, 2, 5)]
    return [t for t in found if span[0] - 1e-9 <= math.log10(t) <= span[1] + 1e-9]


def _error(row: Row) -> float:
    return max(row.error or 0.0, 1e-4)


def _x(value: float | None, span: Span) -> float:
    assert value
    return LEFT + PLOT_W * (math.log10(value) - span[0]) / (span[1] - span[0])


def _y(value: float, span: Span) -> float:
    return TOP + PLOT_H * (span[1] - math.log10(value)) / (span[1] - span[0])
