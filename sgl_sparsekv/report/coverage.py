"""Coverage (`bench.quality.coverage`): what share of attention was asked, and what was got."""

from collections.abc import Sequence
from html import escape
from typing import Any

from ..tooling.charts import Line, Look, Panel, in_percent
from .fields import Wanted, check_all, check_known, numbers
from .looks import looks_of
from .markup import charts, details, number, paragraph, percent, pictured, side_by_side, table
from .section import Kind, Section, Source, rests_on, tokens
from .squares import head_squares

Row = dict[str, Any]
MEANS = (
    "A request may ask for a share of its attention in place of a number of tokens. Got is the "
    "attention weight of what was read then, a mean over decode positions, layers and KV heads; "
    "on the dotted line it is what was asked. Maps show it layer by layer and head by head: the "
    "darker, the more is missing."
)
_ROW: Wanted = {"context": float, "method": str, "got": float, "got_p10": float, "tokens": float}
_ROW |= {"metadata_bytes": None, "kv_bytes": float, "error": None, "error_p90": None, "asked": None}
MAPPED = 0.95
"""Asked share whose layers and heads are drawn."""
MISSING = "#b5179e"
"""Of a head's square: clear where all is covered, dark at a half."""
IDEAL = "as asked"


def claims(content: dict[str, Any]) -> bool:
    """Whether a file has the shape of `bench.quality.coverage`'s results."""
    rows = content.get("rows")
    first = rows[0] if isinstance(rows, list) and rows else None
    return isinstance(first, dict) and {"asked", "got", "got_p10"} <= first.keys()


def section(source: Source) -> Section:
    """One model.

    Raises:
        ValueError: a field is missing or wrong.
    """
    if source.content.get("schema") != 1:
        raise ValueError(f"schema must be 1, got {source.content.get('schema')!r}")
    check_known(source.content, {"model": str, "about": str, "environment": dict}, "the file")
    rows = check_all(source.content["rows"], _ROW, "row")
    asked = [row for row in rows if row["asked"] is not None]
    if not asked:
        raise ValueError("holds no row that asks for a share")
    looks = looks_of(dict.fromkeys(row["method"].partition(" ")[0].rstrip(",") for row in asked))
    contexts = sorted({row["context"] for row in asked}, reverse=True)
    panels = [_panel(asked, at) for at in contexts]
    drawn = {name: looks[_method(name)] for name in dict.fromkeys(r["method"] for r in asked)}
    drawn[IDEAL] = Look("#888888", "1 3")
    about = str(source.content.get("about", ""))
    return Section(
        title=f"Coverage asked and got, model {source.content.get('model', '')}",
        gist=_gist(asked),
        rests_on=rests_on(source.content.get("environment", {})),
        body=paragraph(f"{about[:1].upper()}{about[1:]}.")
        + charts(panels, drawn)
        + _maps([row for row in asked if row["context"] == contexts[0]])
        + _table(asked),
    )


def _method(name: str) -> str:
    return name.partition(" ")[0].rstrip(",")


def _panel(rows: Sequence[Row], context: float) -> Panel:
    here = [row for row in rows if row["context"] == context]
    names = dict.fromkeys(row["method"] for row in here)
    lines = [
        Line(n, tuple(sorted((r["asked"], r["got"]) for r in here if r["method"] == n)))
        for n in names
    ]
    ends = sorted({row["asked"] for row in here})
    lines.append(Line(IDEAL, tuple((x, x) for x in ends)))
    return Panel(
        title=f"Got against asked, {tokens(int(context))} tokens",
        note="attention weight, mean over layers, positions and KV heads",
        x="share of attention asked",
        y="share got",
        lines=tuple(lines),
        linear_x=True,
        fit=True,
        spread=True,
        write_x=in_percent,
        write_y=in_percent,
    )


def _maps(rows: Sequence[Row]) -> str:
    """A square per layer and KV head, method by method, where the file has them."""
    shown = [row for row in rows if row["asked"] == MAPPED and isinstance(row.get("heads"), list)]
    found = []
    for row in shown:
        layers = [numbers(one, f"heads of {row['method']}") for one in row["heads"]]
        if not layers or len({len(one) for one in layers}) > 1 or not layers[0]:
            raise ValueError(f"heads of {row['method']} must be a list per layer, of one length")
        least = min(min(one) for one in layers)
        names = [f"layer {i} of {len(layers)}" for i in range(1, len(layers) + 1)]
        squares = head_squares(layers, names, MISSING, lambda mass: 2 * (1 - mass), "{:.1%}".format)
        found.append(pictured(row["method"], f"least {least:.1%}", squares))
    if not found:
        return ""
    title = f"Attention got where {MAPPED:.0%} was asked: layers across, KV heads down"
    return f"<h4>{escape(title)}</h4>{side_by_side(found)}"


def _table(rows: Sequence[Row]) -> str:
    head = ["", "context", "asked", "got", "worst tenth", "tokens read", "error", "its worst tenth"]
    lines = [
        [
            *(row["method"], tokens(int(row["context"])), percent(row["asked"])),
            *(percent(row["got"]), percent(row["got_p10"]), number(row["tokens"])),
            *(number(row["error"]), number(row["error_p90"])),
        ]
        for row in rows
    ]
    return details(f"All {len(lines)} points", table(head, lines))


def _gist(rows: Sequence[Row]) -> str:
    real = [row for row in rows if not row["method"].startswith("oracle")] or list(rows)
    furthest = max(real, key=lambda row: abs(row["got"] - row["asked"]))
    near = sum(abs(row["got"] - row["asked"]) <= 0.02 for row in real)
    return (
        f"{near} of {len(real)} points within 2 points of what was asked; furthest: "
        f"{furthest['method']}, {furthest['got']:.1%} for {furthest['asked']:.0%}"
    )


KIND = Kind("Coverage", MEANS, False, claims, section)
