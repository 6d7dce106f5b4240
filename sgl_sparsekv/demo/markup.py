"""Pieces of `demo.html`; texts are escaped here."""

from collections.abc import Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Rows of text under their head."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return f'<table class="{kind}">{"".join(lines)}</table>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
