"""Line and bar charts as SVG, drawn by hand: panels of one size, for light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 480, 320
LEFT, TOP, RIGHT, BOTTOM = 60, 58, 18, 46
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
STYLE = """
.fig{--ink:#1f2430;--soft:#6a7280;--rule:#e3e6eb;--back:#fff;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.fig{--ink:#e8eaee;--soft:#9aa3b2;--rule:#323947;--back:#13161c}}
.fig .back{fill:var(--back)}.fig text{fill:var(--ink)}.fig .soft{fill:var(--soft)}
.fig .title{font-weight:600;font-size:14px}.fig .rule{stroke:var(--rule);fill:none}
.fig .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.fig .hollow{fill:var(--back)}
.fig .reach{stroke-width:2.4;stroke-opacity:.45}.fig .small{font-size:11px}
"""


@dataclass(frozen=True)
class Look:
    """How one thing is drawn wherever it appears.

    Attributes:
        colour: of line and marks.
        dash: pattern of the line, in pixels; empty: unbroken.
    """

    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Line:
    """Points of one line.

    Attributes:
        name: key of the looks.
        points: (x, y), by x.
        reach: upper ends, one per point, drawn as a bar from the point; empty: none.
        hollow: whether marks are rings.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    reach: tuple[float, ...] = ()
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: what it answers.
        note: a line below the title.
        x: label of the axis, with its unit.
        y: label of the axis, with its unit.
        lines: what is drawn; a panel without points says that nothing was measured.
        log_y: whether the y axis is logarithmic; else it starts at 0.
        tokens: whether x counts tokens, so that 8192 is written 8k.
    """

    title: str
    note: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_y: bool = False
    tokens: bool = False


@dataclass(frozen=True)
class Bars:
    """One chart of bars, a group of them per heading.

    Attributes:
        title: what it answers.
        note: a line below the title.
        y: label of the axis, with its unit.
        groups: (heading, ((name, value), ...)).
    """

    title: str
    note: str
    y: str
    groups: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


def draw(panel: Panel | Bars, looks: dict[str, Look]) -> str:
    """One chart, `WIDTH` x `HEIGHT`, as SVG elements."""
    parts = [
        f'<text class="title" x="{LEFT}" y="20">{escape(panel.title)}</text>',
        f'<text class="soft small" x="{LEFT}" y="36">{escape(panel.note)}</text>',
        f'<text class="soft" x="{LEFT - 48}" y="{TOP - 8}">{escape(panel.y)}</text>',
    ]
    body = _bars(panel, looks) if isinstance(panel, Bars) else _lines(panel, looks)
    if not body:
        body = [_text(LEFT + PLOT_W / 2, TOP + PLOT_H / 2, "not measured in this run", "middle")]
    return "".join([*parts, *body])


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Where an axis is marked: at 1, 2, 5 of a decade if there are some, or in steps from 0."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        found = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        inside = [one for one in found if low * 0.999 <= one <= high * 1.001]
        whole = [one for one in inside if f"{one:e}".startswith("1")]
        if len(inside) < 3:
            return [low * (high / low) ** part for part in (0.1, 0.5, 0.9)]
        return whole if len(inside) > 8 and len(whole) > 1 else inside
    step = 10.0 ** math.floor(math.log10(high))
    step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2) if high / (step * m) <= 6)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def _lines(panel: Panel, looks: dict[str, Look]) -> list[str]:
    drawn = [line for line in panel.lines if line.points]
    if not drawn:
        return []
    places = sorted({x for line in drawn for x, _ in line.points})
    tops = [y for line in drawn for y in (*(y for _, y in line.points), *line.reach)]
    low = min(y for line in drawn for _, y in line.points)
    y_of = _scale(low, max(tops), panel.log_y)
    parts = _rules(y_of, panel.log_y)
    parts.append(_text(LEFT + PLOT_W / 2, HEIGHT - 8, panel.x, "middle"))
    for x in places:
        at = _across(x, places)
        parts.append(f'<path class="rule" d="M{at:.1f} {TOP + PLOT_H}v5"/>')
        label = f"{x / 1024:g}k" if panel.tokens and x >= 1024 else f"{x:g}"
        parts.append(_text(at, TOP + PLOT_H + 18, label, "middle"))
    for i, line in enumerate(drawn):
        parts += _line(line, looks[line.name], places, y_of, 3 * (i - (len(drawn) - 1) / 2))
    return parts


def _line(
    line: Line, look: Look, places: Sequence[float], y_of: "Scale", shift: float
) -> list[str]:
    """Line, marks, and bars that stand `shift` pixels beside their mark."""
    at = [(_across(x, places), y_of(y)) for x, y in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    colour, dash = look.colour, f' stroke-dasharray="{look.dash}"' if look.dash else ""
    parts = [f'<path class="line" stroke="{colour}"{dash} d="M{path}"/>']
    for (x, y), top in zip(at, line.reach, strict=False):
        bar = f"M{x + shift:.1f} {y:.1f}V{y_of(top):.1f}"
        parts.append(f'<path class="reach" stroke="{colour}" d="{bar}"/>')
    mark = f'class="hollow" stroke="{colour}"' if line.hollow else f'fill="{colour}"'
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" {mark}/>' for x, y in at]
    return parts


def _bars(panel: Bars, looks: dict[str, Look]) -> list[str]:
    values = [value for _, bars in panel.groups for _, value in bars]
    if not values:
        return []
    y_of = _scale(0.0, max(values), False)
    parts = _rules(y_of, False)
    wide = PLOT_W / len(panel.groups)
    for i, (heading, bars) in enumerate(panel.groups):
        parts.append(_text(LEFT + (i + 0.5) * wide, TOP + PLOT_H + 18, heading, "middle"))
        thick = min(34.0, (wide - 24) / max(1, len(bars)))
        x = LEFT + (i + 0.5) * wide - thick * len(bars) / 2
        for name, value in bars:
            parts.append(_bar(x, y_of(value), thick, value, looks[name]))
            x += thick
    return parts


def _bar(x: float, top: float, thick: float, value: float, look: Look) -> str:
    """A bar and its value; paler where the line of that look is broken."""
    pale = ' fill-opacity=".6"' if look.dash else ""
    box = f'x="{x + 1:.1f}" y="{top:.1f}" width="{thick - 2:.1f}"'
    label = f'class="small" x="{x + thick / 2:.1f}" y="{top - 4:.1f}" text-anchor="middle"'
    return (
        f'<rect {box} height="{TOP + PLOT_H - top:.1f}" fill="{look.colour}"{pale}/>'
        f"<text {label}>{value:.3g}</text>"
    )


@dataclass(frozen=True)
class Scale:
    """Places on the y axis."""

    low: float
    high: float
    log: bool

    def __call__(self, value: float) -> float:
        """Pixels from the top."""
        low, high, value = (
            (math.log10(one) for one in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return TOP + PLOT_H * (high - value) / (high - low)


def _scale(low: float, high: float, log: bool) -> Scale:
    if log:
        return Scale(low / 1.3, max(high, low * 1.5) * 1.15, True)
    return Scale(0.0, high * 1.1 or 1.0, False)


def _rules(y_of: Scale, log: bool) -> list[str]:
    parts = [f'<path class="rule" d="M{LEFT} {TOP + PLOT_H}h{PLOT_W}"/>']
    for tick in ticks(y_of.low, y_of.high, log):
        y = y_of(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}h{PLOT_W}"/>')
        parts.append(
            _text(LEFT - 8, y + 4, f"{tick:,.3g}" if tick < 1000 else f"{tick:,.0f}", "end")
        )
    return parts


def _across(x: float, places: Sequence[float]) -> float:
    """Pixels from the left: equal steps for equal ratios."""
    if len(places) == 1:
        return LEFT + PLOT_W / 2
    low, high = math.log2(places[0]), math.log2(places[-1])
    return LEFT + 16 + (PLOT_W - 32) * (math.log2(x) - low) / (high - low)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="soft" {place}>{escape(text)}</text>'
