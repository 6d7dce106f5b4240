"""Line and bar charts as SVG, drawn by hand: panels of one size, for light and dark pages."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 480, 320
LEFT, TOP, RIGHT, BOTTOM = 60, 58, 18, 46
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
HEAD = 32
"""Pixels above the axis' label, where title and note stand."""
MOST_MARKS = 24
"""A line of more points is drawn without marks."""
INSET = 16
"""Pixels between the ends of the x axis and the outermost points."""
STYLE = """
.fig{--ink:#1f2430;--soft:#6a7280;--rule:#e3e6eb;--back:#fff;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.fig{--ink:#e8eaee;--soft:#9aa3b2;--rule:#323947;--back:#13161c}}
.fig .back{fill:var(--back)}.fig text{fill:var(--ink)}.fig .soft{fill:var(--soft)}
.fig .title{font-weight:600;font-size:14px}.fig .rule{stroke:var(--rule);fill:none}
.fig .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.fig .hollow{fill:var(--back)}
.fig .reach{stroke-width:2.4;stroke-opacity:.45}.fig .small{font-size:11px}
.fig .bare{stroke-width:1.2;stroke-opacity:.75}
.fig .until{stroke-width:1.2;stroke-opacity:.7;fill:none}
"""
Write = Callable[[float], str]


def plainly(value: float) -> str:
    """A tick as a number."""
    return f"{value:,.6g}"


def in_tokens(value: float) -> str:
    """`8k` for 8192."""
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def in_percent(value: float) -> str:
    """`5 %` for 0.05."""
    return f"{100 * value:.6g} %"


def in_bytes(value: float) -> str:
    """`1.5 MB` for 1500000."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} B"


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
        until: right ends, one per point, drawn as a whisker from the point; empty: none.
        bare: whether it is thin and has no marks.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    reach: tuple[float, ...] = ()
    hollow: bool = False
    until: tuple[float, ...] = ()
    bare: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: what it answers.
        note: a line below the title.
        x: label of the axis, with its unit.
        y: label of the axis, with its unit.
        lines: what is drawn; a panel without points says that nothing was measured.
        log_y: whether the y axis is logarithmic, then only what is above 0 is drawn; else it starts
            at 0.
        tokens: whether x counts tokens, so that 8192 is written 8k.
        fit: whether a y axis that is not logarithmic starts near the least value.
        linear_x: whether x counts: equal steps are equal differences, not ratios.
        spread: whether the x axis has round numbers, not the places of the points.
        levels: (key of the looks, y) of lines across the chart.
        write_x: how a number of the x axis is written.
        write_y: how a number of the y axis is written.
    """

    title: str
    note: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_y: bool = False
    tokens: bool = False
    fit: bool = False
    linear_x: bool = False
    spread: bool = False
    levels: tuple[tuple[str, float], ...] = ()
    write_x: Write = plainly
    write_y: Write = plainly


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


@dataclass(frozen=True)
class Scale:
    """Places on an axis.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        log: whether equal steps are equal ratios.
        start: pixels.
        end: pixels.
    """

    low: float
    high: float
    log: bool
    start: float = TOP + PLOT_H
    end: float = TOP

    def __call__(self, value: float) -> float:
        """Pixels from the top, or from the left."""
        low, high, value = (
            (math.log10(one) for one in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers on it."""
        return ticks(self.low, self.high, self.log)


def draw(panel: Panel | Bars, looks: dict[str, Look]) -> str:
    """One chart, `WIDTH` x `HEIGHT`, as SVG elements."""
    return (
        f'<text class="title" x="{LEFT}" y="20">{escape(panel.title)}</text>'
        f'<text class="soft small" x="{LEFT}" y="36">{escape(panel.note)}</text>'
        f"{_plot(panel, looks)}"
    )


def figure(panel: Panel | Bars, looks: dict[str, Look]) -> str:
    """One chart for a page that writes title and note itself, and has `STYLE`."""
    return (
        f'<svg class="fig" viewBox="0 {HEAD} {WIDTH} {HEIGHT - HEAD}" role="img" '
        f'aria-label="{escape(panel.title, {chr(34): "&quot;"})}">{_plot(panel, looks)}</svg>'
    )


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers on an axis: 1, 2, 5 by decade, or some equal steps."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        found = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        inside = [one for one in found if low * 0.999 <= one <= high * 1.001]
        if len(inside) < 2:
            return ticks(low, high, False)
        whole = [one for one in inside if f"{one:e}".startswith("1")]
        return whole if len(inside) > 8 and len(whole) > 1 else inside
    span = high - low
    step = 10.0 ** math.floor(math.log10(span))
    step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2) if span / (step * m) <= 6)
    return [i * step for i in range(math.ceil(low / step - 1e-9), int(high / step + 1e-9) + 1)]


def _plot(panel: Panel | Bars, looks: dict[str, Look]) -> str:
    body = _bars(panel, looks) if isinstance(panel, Bars) else _lines(panel, looks)
    if not body:
        body = [_text(LEFT + PLOT_W / 2, TOP + PLOT_H / 2, "not measured in this run", "middle")]
    label = f'<text class="soft" x="{LEFT - 48}" y="{TOP - 11}">{escape(panel.y)}</text>'
    return "".join([label, *body])


def _lines(panel: Panel, looks: dict[str, Look]) -> list[str]:
    drawn = [line for line in panel.lines if any(y > 0 or not panel.log_y for _, y in line.points)]
    if not drawn:
        return []
    x_of, y_of = _x_scale(panel, drawn), _y_scale(panel, drawn)
    parts = _rules(y_of, panel.write_y)
    parts.append(_text(LEFT + PLOT_W / 2, HEIGHT - 8, panel.x, "middle"))
    write = in_tokens if panel.tokens else panel.write_x
    places = sorted({float(x) for line in drawn for x, _ in line.points})
    marked = x_of.ticks() if panel.spread else places
    for x in marked if x_of.log else filter(float.is_integer, marked):
        at = x_of(x)
        parts.append(f'<path class="rule" d="M{at:.1f} {TOP + PLOT_H}v5"/>')
        parts.append(_text(at, TOP + PLOT_H + 18, write(x), "middle"))
    for name, level in panel.levels:
        look, y = looks[name], y_of(level)
        parts.append(
            f'<path class="line bare" stroke="{look.colour}" stroke-dasharray="2 3" '
            f'd="M{LEFT} {y:.1f}h{PLOT_W}"/>'
        )
    for i, line in enumerate(drawn):
        look, beside = looks[line.name], 3 * (i - (len(drawn) - 1) / 2)
        written = _written(line, write, panel.write_y)
        parts += _line(line, look, (x_of, y_of), beside, written)
    return parts


def _line(
    line: Line, look: Look, scales: tuple[Scale, Scale], beside: float, written: Sequence[str]
) -> list[str]:
    """Line, marks that say what is written, whiskers, and bars `beside` pixels from their mark."""
    x_of, y_of = scales
    kept = [i for i, (_, y) in enumerate(line.points) if y > 0 or not y_of.log]
    at = {i: (x_of(line.points[i][0]), y_of(line.points[i][1])) for i in kept}
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at.values())
    colour, dash = look.colour, f' stroke-dasharray="{look.dash}"' if look.dash else ""
    kind = "line bare" if line.bare else "line"
    parts = [f'<path class="{kind}" stroke="{colour}"{dash} d="M{path}"/>']
    mark = f'class="hollow" stroke="{colour}"' if line.hollow else f'fill="{colour}"'
    for i, (x, y) in at.items():
        if line.reach:
            bar = f"M{x + beside:.1f} {y:.1f}V{y_of(line.reach[i]):.1f}"
            parts.append(f'<path class="reach" stroke="{colour}" d="{bar}"/>')
        if line.until:
            end = f"M{x:.1f} {y:.1f}H{x_of(line.until[i]):.1f}m0 -3v6"
            parts.append(f'<path class="until" stroke="{colour}" d="{end}"/>')
        if not line.bare and len(at) <= MOST_MARKS:
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="3.2"'
            parts.append(f"<circle {place} {mark}><title>{escape(written[i])}</title></circle>")
    return parts


def _written(line: Line, x: Write, y: Write) -> list[str]:
    """What each mark says under the pointer."""
    return [f"{line.name}: {y(up)} at {x(across)}" for across, up in line.points]


def _bars(panel: Bars, looks: dict[str, Look]) -> list[str]:
    values = [value for _, bars in panel.groups for _, value in bars]
    if not values:
        return []
    y_of = Scale(0.0, max(values) * 1.1 or 1.0, False)
    parts = _rules(y_of, plainly)
    wide = PLOT_W / len(panel.groups)
    for i, (heading, bars) in enumerate(panel.groups):
        parts.append(_text(LEFT + (i + 0.5) * wide, TOP + PLOT_H + 18, heading, "middle"))
        thick = min(34.0, (wide - 10) / max(1, len(bars)))
        x = LEFT + (i + 0.5) * wide - thick * len(bars) / 2
        for name, value in bars:
            parts.append(_bar(x, y_of(value), thick, f"{value:.3g}", (name, looks[name])))
            x += thick
    return parts


def _bar(x: float, top: float, thick: float, value: str, what: tuple[str, Look]) -> str:
    """A bar and its value; paler where the line of that look is broken."""
    name, look = what
    pale = ' fill-opacity=".6"' if look.dash else ""
    box = f'x="{x + 1:.1f}" y="{top:.1f}" width="{thick - 2:.1f}"'
    label = f'class="small" x="{x + thick / 2:.1f}" y="{top - 4:.1f}" text-anchor="middle"'
    return (
        f'<rect {box} height="{TOP + PLOT_H - top:.1f}" fill="{look.colour}"{pale}>'
        f"<title>{escape(name)}: {value}</title></rect><text {label}>{value}</text>"
    )


def _x_scale(panel: Panel, drawn: Sequence[Line]) -> Scale:
    places = [x for line in drawn for x in (*(x for x, _ in line.points), *line.until)]
    low, high, log = min(places), max(places), not panel.linear_x
    if log and high < low * (4 if panel.spread else 1.001):
        widen = 2 / math.sqrt(high / low)
        low, high = low / widen, high * widen
    elif high == low:
        low, high = low - 1, high + 1
    return Scale(low, high, log, LEFT + INSET, LEFT + PLOT_W - INSET)


def _y_scale(panel: Panel, drawn: Sequence[Line]) -> Scale:
    levels = [level for _, level in panel.levels]
    values = [*(y for line in drawn for y in (*(y for _, y in line.points), *line.reach)), *levels]
    if panel.log_y:
        above = [value for value in values if value > 0]
        low, high = min(above), max(above)
        return Scale(low / 1.3, max(high, low * 1.5) * 1.15, True)
    low, high = min(values), max(values)
    if panel.fit:
        spare = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        return Scale(low - spare, high + spare, False)
    return Scale(min(0.0, low), high * 1.1 or 1.0, False)


def _rules(y_of: Scale, write: Write) -> list[str]:
    parts = [f'<path class="rule" d="M{LEFT} {TOP + PLOT_H}h{PLOT_W}"/>']
    for tick in y_of.ticks():
        y = y_of(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}h{PLOT_W}"/>')
        parts.append(_text(LEFT - 8, y + 4, write(tick), "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="soft" {place}>{escape(text)}</text>'
