"""Pieces of the page: tables, figures, legends; what comes from a file is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ..tooling.charts import Bars, Look, Panel, figure


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself where it is too wide; the first column stands to the left."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>'


def details(summary: str, body: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def pictured(title: str, note: str, picture: str) -> str:
    """A picture below its title and what it shows."""
    said = f"<strong>{escape(title)}</strong>" + (f"<span>{escape(note)}</span>" if note else "")
    return f"<figure><figcaption>{said}</figcaption>{picture}</figure>"


def side_by_side(pictures: Iterable[str], kind: str = "charts") -> str:
    """Pictures in as many columns as there is room for."""
    return f'<div class="{kind}">{"".join(pictures)}</div>'


def charts(panels: Sequence[Panel | Bars], looks: Mapping[str, Look]) -> str:
    """Charts under one legend of what is drawn in them."""
    if not panels:
        return ""
    drawn = dict.fromkeys(name for panel in panels for name in _names(panel))
    shown = {name: look for name, look in looks.items() if name in drawn}
    pictures = [pictured(one.title, one.note, figure(one, dict(looks))) for one in panels]
    return legend(shown) + side_by_side(pictures)


def legend(looks: Mapping[str, Look]) -> str:
    """Names beside the strokes that stand for them."""
    return '<p class="legend">' + "".join(_key(*one) for one in looks.items()) + "</p>"


def number(value: float | None, unit: str = "") -> str:
    """Three digits, whole numbers from 100 on; a dash for what is not known."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:,.{digits}f}" if abs(value) >= 0.9995 or not value else f"{value:.3g}"
    return text + unit


def percent(value: float | None) -> str:
    """A share with one decimal; a dash for what is not known."""
    return "-" if value is None else f"{value:.1%}"


def _key(name: str, look: Look) -> str:
    dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
    line = f'<path d="M0 5h24" stroke="{look.colour}" stroke-width="2.4"{dash}/>'
    return f'<span><svg width="24" height="10" aria-hidden="true">{line}</svg>{escape(name)}</span>'


def _names(panel: Panel | Bars) -> list[str]:
    if isinstance(panel, Bars):
        return [name for _, bars in panel.groups for name, _ in bars]
    return [
        *(line.name for line in panel.lines if line.points),
        *(name for name, _ in panel.levels),
    ]


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
