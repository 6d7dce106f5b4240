"""Quality of selections (`bench.quality`): attention mass and error against bytes."""

from collections.abc import Sequence
from typing import Any

from ..selection.base import IndexOptions
from ..tooling.charts import Line, Look, Panel, in_percent
from .fields import Wanted, check, check_all, numbers
from .looks import looks_of
from .markup import charts, details, number, paragraph, table
from .section import Kind, Section, Source, rests_on, tokens

Row = dict[str, Any]
MEANS = (
    "Mass is the attention weight that the chosen tokens cover, 1 for all; error is the length of "
    "(sparse minus dense output) over that of the dense output; both are means over positions and "
    "heads. Bytes are what a step reads to choose plus K and V of what it chose, of what dense "
    "attention reads. Oracles are bounds: they choose for nothing."
)
_HEADER: Wanted = {
    "model": str,
    "about": str,
    "queries": float,
    "heads": float,
    "environment": dict,
}
_ROW: Wanted = {
    "context": float,
    "method": str,
    "equal": str,
    "quest_budget": float,
    "budget": None,
}
_ROW |= {"dense_bytes": float, "metadata_bytes": None, "kv_bytes": None, "recall": None}
_ROW |= {"mass": None, "error": None, "error_p90": None, "layers": list}
_FIGURES = ("recall", "mass", "error", "error_p90")
MOST_LINES = 12
OPEN_LAYERS = 6


def claims(content: dict[str, Any]) -> bool:
    """Whether a file has the shape of `bench.quality`'s results."""
    head = content.get("header")
    return isinstance(head, dict) and "queries" in head and "rows" in content


def section(source: Source) -> Section:
    """One model.

    Raises:
        ValueError: a field is missing or wrong.
    """
    if source.content.get("schema") != 1:
        raise ValueError(f"schema must be 1, got {source.content.get('schema')!r}")
    head = check(source.content["header"], _HEADER, "the header")
    rows = check_all(source.content["rows"], _ROW, "row")
    points = [row for row in rows if row["equal"] == "budget" and share(row)]
    if not points:
        raise ValueError("holds no row at a budget")
    names = drawn(points)
    looks = _looks(names)
    contexts = sorted({row["context"] for row in points}, reverse=True)
    most = [row for row in points if row["context"] == contexts[0]]
    body = [paragraph(_about(head, names, points))]
    panels = [_panel(points, names, at, name) for at in contexts for name in ("mass", "error")]
    body.append(charts(panels, looks))
    body.append(_layers(most, names, looks))
    body.append(_table(most))
    return Section(
        title=f"Attention found, model {head['model']}",
        gist=_gist(most, names),
        rests_on=rests_on(head["environment"]),
        body="".join(body),
    )


def share(row: Row) -> float | None:
    """Bytes read over those of dense attention; None where choosing alone reads more."""
    if row["metadata_bytes"] is None or row["kv_bytes"] is None:
        return None
    found: float = (row["metadata_bytes"] + row["kv_bytes"]) / row["dense_bytes"]
    return found


def drawn(rows: Sequence[Row]) -> list[str]:
    """Methods that are drawn: without variants, or the one with the package's defaults; of a file
    that lacks that one, the method's first."""
    names, options = list(dict.fromkeys(row["method"] for row in rows)), IndexOptions()
    defaults = {
        "clusterkv": f"clusterkv {options.tokens_per_centroid}/{options.cluster_segment}",
        "pqcache": f"pqcache {options.pq_subspaces}x{options.pq_bits}/{options.pq_segment}",
        "residual_pq": f"residual_pq {options.residual_subspaces}x4/{options.residual_segment}"
        " + estimate",
    }
    shown = {
        next((n for n in names if n == default), None)
        or next((n for n in names if n.startswith(f"{method} ")), None)
        for method, default in defaults.items()
    }
    plain = [n for n in names if "/" not in n or n in shown]
    return (plain or names)[:MOST_LINES]


def _panel(rows: Sequence[Row], names: Sequence[str], context: int, figure: str) -> Panel:
    here = [row for row in rows if row["context"] == context]
    return _against_bytes(
        f"{figure.capitalize()} against bytes, {tokens(int(context))} tokens",
        "mean over layers",
        {name: [(row, row[figure]) for row in here if row["method"] == name] for name in names},
        figure,
    )


def _against_bytes(
    title: str, note: str, found: dict[str, list[tuple[Row, Any]]], figure: str
) -> Panel:
    error = figure == "error"
    lines = []
    for name, pairs in found.items():
        points = [(s, y) for row, y in pairs if (s := share(row)) and y is not None]
        lines.append(Line(name, tuple(sorted(points))))
    return Panel(
        title=title,
        note=note,
        x="bytes read, of dense attention's",
        y="relative error" if error else "attention mass",
        lines=tuple(lines),
        log_y=error,
        fit=not error,
        spread=True,
        write_x=in_percent,
        write_y="{:g}".format if error else in_percent,
    )


def _layers(rows: Sequence[Row], names: Sequence[str], looks: dict[str, Look]) -> str:
    """Each layer by itself, at the longest context."""
    count = min((len(row["layers"]) for row in rows), default=0)
    if count < 2:
        return ""
    for i, row in enumerate(rows):
        for layer in row["layers"]:
            if len(numbers(layer, f"layers of row {i + 1}")) != len(_FIGURES):
                raise ValueError(f"layers of row {i + 1} must hold {', '.join(_FIGURES)}")
    panels = []
    for layer in range(count):
        for figure in ("mass", "error"):
            at = _FIGURES.index(figure)
            found = {
                name: [(row, row["layers"][layer][at]) for row in rows if row["method"] == name]
                for name in names
            }
            where = f"{tokens(int(rows[0]['context']))} tokens"
            panels.append(_against_bytes(f"Layer {layer}: {figure}", where, found, figure))
    if count <= OPEN_LAYERS:
        return f"<h4>Layer by layer</h4>{charts(panels, looks)}"
    return details(f"Each of {count} layers", charts(panels, looks))


def _table(rows: Sequence[Row]) -> str:
    head = ["", "budget", "bytes", "to choose", "mass", "error", "worst tenth", "recall"]
    lines = [
        [
            *(row["method"], number(row["budget"]), f"{share(row) or 0:.1%}"),
            f"{row['metadata_bytes'] / row['dense_bytes']:.1%}",
            *(number(row[name]) for name in ("mass", "error", "error_p90", "recall")),
        ]
        for row in rows
    ]
    where = tokens(int(rows[0]["context"]))
    return details(f"All {len(lines)} points at {where} tokens", table(head, lines))


def _looks(names: Sequence[str]) -> dict[str, Look]:
    """Variants in the colour of their method; bounds dashed."""
    method = {name: name.partition(" ")[0].rstrip(",") for name in names}
    colours = looks_of(method.values())
    dashes = {"oracle, units": "4 3", "oracle, tokens": "1 3"}
    return {name: Look(colours[method[name]].colour, dashes.get(name, "")) for name in names}


def _about(head: dict[str, Any], names: Sequence[str], rows: Sequence[Row]) -> str:
    every = {row["method"] for row in rows}
    left = f" Drawn: {len(names)} of {len(every)} variants; all are in the table."
    return (
        f"{head['about'][:1].upper()}{head['about'][1:]}; {head['queries']} decode positions, "
        f"{head['heads']} KV heads.{left if len(every) > len(names) else ''}"
    )


def _gist(rows: Sequence[Row], names: Sequence[str]) -> str:
    real = [name for name in names if not name.startswith("oracle")]
    some = [row for row in rows if row["method"] in real]
    some = [row for row in some if row["mass"] is not None and (share(row) or 1) <= 0.15]
    if not some:
        return f"{len(rows)} points"
    best = max(some, key=lambda row: row["mass"])
    return (
        f"the most mass found with at most 15 % of the bytes at {tokens(int(best['context']))} "
        f"tokens: {best['method']}, {best['mass']:.1%} with {share(best):.1%}"
    )


KIND = Kind("Quality", MEANS, False, claims, section)
