"""Runs on a GPU (`bench.gpu`): time against context with floor and peer, row by row."""

from collections.abc import Sequence
from typing import Any

from ..tooling.charts import Line, Look, Panel
from .fields import Wanted, check, check_all, check_known
from .kernels import over_context, peer_of
from .looks import KNOWN, variants
from .markup import charts, details, number, paragraph, table
from .section import Kind, Section, Source, rests_on, tokens

Row = dict[str, Any]
MEANS = (
    "Microseconds, the least of the repeats: of one layer, or of a whole decode step for rows "
    "named step. Thin: the floor, bytes that must be read over the read bandwidth. The peer "
    "was timed in the same run."
)
_HEADER: Wanted = {"gpu": str, "model": str, "tb_per_s": float, "when": str, "versions": dict}
_HEADER |= {"device": dict, "bandwidth_measured": bool}
_ROW: Wanted = {"name": str, "context": float, "batch": float, "page": float, "unit": float}
_ROW |= {"budget": float, "method": str, "measured_us": float, "floor_us": None, "peer_us": None}
_ROW |= {"of_floor": None, "gain": None}


def claims(content: dict[str, Any]) -> bool:
    """Whether a file has the shape of a GPU run."""
    head = content.get("header")
    return isinstance(head, dict) and "gpu" in head and "tb_per_s" in head


def section(source: Source) -> Section:
    """One run.

    Raises:
        ValueError: a field is missing or wrong.
    """
    if source.content.get("schema") != 1:
        raise ValueError(f"schema must be 1, got {source.content.get('schema')!r}")
    head = check(source.content["header"], _HEADER, "the header")
    rows = check_all(source.content.get("rows"), _ROW, "row")
    rows = [check_known(row, {"peer": str}, "a row") | {"peer": peer_of(row)} for row in rows]
    looks = variants((row["method"], _variant(row)) for row in rows)
    peers = dict.fromkeys(row["peer"] for row in rows if row["peer_us"])
    looks |= {name: Look(KNOWN["torch_native"], "5 2") for name in peers}
    shapes = dict.fromkeys((row["name"], row["batch"]) for row in rows)
    device = head["device"].get("name") or head["gpu"]
    speed = "measured in this run" if head["bandwidth_measured"] else "not measured in this run"
    about = f"{head['model']}; floors at {head['tb_per_s']:g} TB/s, {speed}."
    return Section(
        title=f"{head['model']} on {head['gpu']}",
        gist=_gist(rows),
        rests_on=rests_on(head["versions"] | {k: head.get(k) for k in ("when", "commit")}, device),
        body=paragraph(about)
        + charts([_panel(rows, *shape) for shape in shapes], looks)
        + details(f"All {len(rows)} rows", _table(rows)),
    )


def _panel(rows: Sequence[Row], name: str, batch: int) -> Panel:
    here = [row for row in rows if (row["name"], row["batch"]) == (name, batch)]
    lines: list[Line] = []
    for variant in dict.fromkeys(map(_variant, here)):
        own = [row for row in here if _variant(row) == variant]
        lines.append(over_context(own, variant, "measured_us"))
        lines.append(over_context(own, variant, "floor_us", bare=True))
    for peer in dict.fromkeys(row["peer"] for row in here if row["peer_us"]):
        own = [row for row in here if row["peer_us"] and row["peer"] == peer]
        least = {row["context"]: row for row in sorted(own, key=lambda row: -row["peer_us"])}
        lines.append(over_context(list(least.values()), peer, "peer_us"))
    return Panel(
        title=f"{name}, batch {batch}",
        note="thin: the floor of what is drawn in the same colour",
        x="context, tokens",
        y="us",
        lines=tuple(lines),
        log_y=True,
        tokens=True,
    )


def _variant(row: Row) -> str:
    return f"{row['method']} {row['budget']:,}, page {row['page']}, unit {row['unit']}"


def _table(rows: Sequence[Row]) -> str:
    head = ["row", "method", "context", "batch", "page", "unit", "budget"]
    head += ["us", "floor", "of floor", "peer", "peer us", "gain", "note"]
    lines = [
        [
            *(row["name"], row["method"], tokens(int(row["context"]))),
            *(f"{row[name]:,}" for name in ("batch", "page", "unit", "budget")),
            *(number(row[name]) for name in ("measured_us", "floor_us", "of_floor")),
            *(
                row["peer"] if row["peer_us"] else "-",
                number(row["peer_us"]),
                number(row["gain"], "x"),
            ),
            str(row.get("note") or ""),
        ]
        for row in rows
    ]
    return table(head, lines)


def _gist(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row["gain"]]
    if not judged:
        return f"{len(rows)} rows, none beside a peer"
    best = max(judged, key=lambda row: row["gain"])
    where = f"{tokens(int(best['context']))} tokens, batch {best['batch']}"
    return f"{best['name']} at {where}: {number(best['gain'])} times as fast as {best['peer']}"


KIND = Kind("GPU", MEANS, False, claims, section)
