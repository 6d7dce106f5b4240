"""The picture of a sweep: one panel per question, one look per way of decoding."""

from collections.abc import Sequence
from dataclasses import asdict
from xml.sax.saxutils import escape

from bench.serve.results import Result, Row
from sgl_sparsekv.report import serving
from sgl_sparsekv.report.looks import variants
from sgl_sparsekv.tooling.charts import HEIGHT, LEFT, STYLE, WIDTH, Bars, Look, Panel, draw

COLUMNS = 2
HEAD, ROW = 56, 20


def picture(result: Result) -> str:
    """A whole file; panels without points say so."""
    looks = variants((row.method or row.server, row.variant) for row in result.rows)
    panels = panels_of(result)
    down = -(-len(panels) // COLUMNS)
    legend, rows = _legend(looks)
    top = HEAD + rows * ROW + 6
    wide, high = COLUMNS * WIDTH, top + down * HEIGHT
    body = "".join(
        f'<g class="panel" transform="translate({i % COLUMNS * WIDTH} '
        f'{top + i // COLUMNS * HEIGHT})">{draw(panel, looks)}</g>'
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        f'role="img" aria-label="Serving benchmarks of sparse and dense decoding">'
        f'<style>{STYLE}</style><rect class="back" width="{wide}" height="{high}"/>'
        f"{_head(result)}{legend}{body}</svg>\n"
    )


def panels_of(result: Result) -> list[Panel | Bars]:
    """Every question, answered or not: those that `sparsekv report` draws."""
    return serving.panels_of([asdict(row) for row in result.rows], result.header.goodput)


def _tokens(rows: Sequence[Row]) -> str:
    found = {output for row in rows for output in row.tool.get("output_lens", ())}
    return f"{max(found)} generated" if found else "none generated"


def _head(result: Result) -> str:
    where = result.header.environment
    title = f"{result.header.model}; {_tokens(result.rows)}"
    machine = f"{where['machine']}; SGLang {where['sglang']}, commit {where['commit']}"
    return (
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>'
        f'<text class="soft" x="{LEFT}" y="44">{escape(machine)}, {escape(where["when"])}</text>'
    )


def _legend(looks: dict[str, Look]) -> tuple[str, int]:
    """Every name beside its line, and how many rows that takes."""
    parts, x, row = [], float(LEFT), 0
    for name, look in looks.items():
        wide = 52 + 7 * len(name)
        if x + wide > COLUMNS * WIDTH and x > LEFT:
            x, row = float(LEFT), row + 1
        y = HEAD + 8 + row * ROW
        dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
        parts.append(
            f'<path class="line" stroke="{look.colour}"{dash} d="M{x:.0f} {y}h26"/>'
            f'<text x="{x + 32:.0f}" y="{y + 4}">{escape(name)}</text>'
        )
        x += wide
    return "".join(parts), row + 1
