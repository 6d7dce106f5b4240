"""Kernel benchmarks of a CPU: time of one attention layer against context, floor and peer."""

from collections.abc import Callable, Sequence
from typing import Any

from ..tooling.charts import Bars, Line, Look, Panel
from .fields import Wanted, check, check_all, check_known
from .looks import looks_of
from .markup import charts, details, number, paragraph, table
from .section import Kind, Section, Source, rests_on, tokens

Row = dict[str, Any]
MEANS = (
    "Milliseconds of one attention layer in one decode step, the least of the repeats. Thin: the "
    "floor, bytes that must be read over the read bandwidth of the same run; no kernel beats it. "
    "Dense reads everything, through the same kernels. The peer is SGLang's own dense attention, "
    "timed in the same run."
)
_HEADER: Wanted = {"when": str, "machine": str, "device": str, "read_gb_per_s": float}
_ROW: Wanted = {
    "op": str,
    "method": str,
    "context": float,
    "batch": float,
    "budget": float,
    "ms": float,
}
_ROW |= {"median_ms": float, "floor_ms": None, "of_floor": None, "peer_ms": None, "speedup": None}
WHOLE = ("decode_sparse", "decode_dense")
PARTS = ("score", "select", "attend")
_PART_LOOKS = {"score": Look("#607d9c"), "select": Look("#c7a252"), "attend": Look("#8fb08c")}


def claims(content: dict[str, Any]) -> bool:
    """Whether a file has the shape of `bench.kernels`' results."""
    rows = content.get("rows")
    first = rows[0] if isinstance(rows, list) and rows else {}
    return isinstance(content.get("header"), dict) and isinstance(first, dict) and "op" in first


def section(source: Source) -> Section:
    """One run of `bench.kernels`.

    Raises:
        ValueError: a field is missing or wrong.
    """
    head = check(source.content["header"], _HEADER, "the header")
    check_known(head, {"load_average": None, "heads": list}, "the header")
    rows = check_all(source.content["rows"], _ROW, "row")
    rows = [check_known(row, {"peer": str}, "a row") | {"peer": peer_of(row)} for row in rows]
    decode = [row for row in rows if row["op"] in WHOLE]
    batches = sorted({row["batch"] for row in decode})
    panels = [_time(decode, batch) for batch in batches]
    panels += [_gain(decode, batch) for batch in batches]
    peers = {row["peer"] for row in decode if row.get("peer_ms")}
    looks = looks_of([*(row["method"] for row in decode), *sorted(peers)])
    parts = _parts(rows)
    return Section(
        title=f"Kernels on {head['device']}",
        gist=_gist(decode),
        rests_on=rests_on(head),
        body="".join(
            (
                paragraph(_shape(head)),
                charts([*panels, *([parts] if parts.groups else [])], looks | _PART_LOOKS),
                details(f"All {len(rows)} rows", _table(rows)),
            )
        ),
    )


def peer_of(row: Row) -> str:
    """What a row is compared with, by name."""
    return row.get("peer") or "peer"


def over_context(rows: Sequence[Row], name: str, value: str, bare: bool = False) -> Line:
    """Points of the rows that have a value, by context."""
    points = sorted((float(row["context"]), float(row[value])) for row in rows if row.get(value))
    return Line(name, tuple(points), bare=bare)


def _time(decode: Sequence[Row], batch: int) -> Panel:
    return Panel(
        title=f"Time of a layer against context, batch {batch}",
        note="thin: the floor of what is drawn in the same colour",
        x="context, tokens",
        y="ms",
        lines=tuple(_by_method([row for row in decode if row["batch"] == batch], _with_floor)),
        log_y=True,
        tokens=True,
    )


def _gain(decode: Sequence[Row], batch: int) -> Panel:
    rows = [row for row in decode if row["batch"] == batch and row["speedup"]]
    peers = ", ".join(sorted({row["peer"] for row in rows})) or "the peer"
    return Panel(
        title=f"Times as fast as {peers}, batch {batch}",
        note="its time over that of the method, same context, same run",
        x="context, tokens",
        y="times",
        lines=tuple(_by_method(rows, lambda own, name: [over_context(own, name, "speedup")])),
        log_y=True,
        tokens=True,
    )


def _by_method(rows: Sequence[Row], lines: Callable[[list[Row], str], list[Line]]) -> list[Line]:
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        found += lines([row for row in rows if row["method"] == name], name)
    peers = {row["context"]: row for row in rows if row["peer_ms"]}
    if peers and lines is _with_floor:
        name = next(iter(peers.values()))["peer"]
        found.append(over_context(list(peers.values()), name, "peer_ms"))
    return found


def _with_floor(rows: list[Row], name: str) -> list[Line]:
    return [over_context(rows, name, "ms"), over_context(rows, name, "floor_ms", bare=True)]


def _parts(rows: Sequence[Row]) -> Bars:
    """What the steps of a layer take at the longest context, batch 1."""
    parts = [row for row in rows if row["op"] in PARTS and row["batch"] == 1]
    longest = max((row["context"] for row in parts), default=0)
    here = [row for row in parts if row["context"] == longest]
    return Bars(
        title=f"Parts of a layer, {tokens(int(longest))} tokens, batch 1",
        note="choosing is score and select; methods that share a part are timed once",
        y="ms",
        groups=tuple(
            (method, tuple((row["op"], row["ms"]) for row in here if row["method"] == method))
            for method in dict.fromkeys(row["method"] for row in here)
        ),
    )


def _shape(head: dict[str, Any]) -> str:
    heads = head.get("heads") or ()
    shape = "{} query heads, {} KV heads of {}. ".format(*heads) if len(heads) == 3 else ""
    load = f", load {number(head['load_average'])} at its start" if head.get("load_average") else ""
    return f"{shape}Read bandwidth {number(head['read_gb_per_s'])} GB/s{load}."


def _table(rows: Sequence[Row]) -> str:
    head = ["op", "method", "context", "batch", "budget", "ms", "median", "floor", "of floor"]
    lines = [
        [
            *(row["op"], row["method"], tokens(int(row["context"])), f"{row['batch']}"),
            tokens(int(row["budget"])),
            *(number(row[name]) for name in ("ms", "median_ms", "floor_ms", "of_floor")),
            *(
                row["peer"] if row["peer_ms"] else "-",
                number(row["peer_ms"]),
                number(row["speedup"], "x"),
            ),
        ]
        for row in rows
    ]
    return table([*head, "peer", "peer ms", "speed-up"], lines)


def _gist(decode: Sequence[Row]) -> str:
    sparse = [row for row in decode if row["op"] == "decode_sparse" and row["speedup"]]
    if not sparse:
        return "no decode over a selection beside a peer"
    longest = max(row["context"] for row in sparse)
    best = max((r for r in sparse if r["context"] == longest), key=lambda row: row["speedup"])
    floor = f", {number(best['of_floor'])} times its floor" if best["of_floor"] else ""
    return (
        f"{best['method']} at {tokens(int(longest))} tokens: {number(best['ms'])} ms{floor}, "
        f"{number(best['speedup'])} times as fast as {best['peer']}"
    )


KIND = Kind("Kernels", MEANS, False, claims, section)
