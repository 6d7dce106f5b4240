"""Serving benchmarks (a sweep of `bench.serve`): time between tokens, load, goodput."""

from collections.abc import Callable, Sequence
from typing import Any

from ..tooling.charts import Bars, Line, Panel
from .fields import Wanted, check, check_all, check_known, numbers
from .looks import variants
from .markup import charts, details, number, paragraph, percent, table
from .section import Kind, Section, Source, rests_on, tokens

Row = dict[str, Any]
MEANS = (
    "ITL is the time between two tokens of an answer, TTFT the time to its first; both are medians "
    "over requests, in milliseconds. Tokens per second count generated tokens over the wall time, "
    "prefill included. Goodput counts the requests within the limits named. Dense peers are "
    "servers with the same flags but for the attention backend."
)
_HEADER: Wanted = {"environment": dict, "model": str, "goodput": dict, "differences": list}
_ROW: Wanted = {"workload": str, "variant": str, "server": str, "context": int, "concurrency": int}
_ROW |= {"requests": int, "tokens_per_s": float, "tool": dict}
_ROW |= dict.fromkeys(("rate", "ttft_ms", "itl_ms", "itl_p99_ms", "kv_read", "goodput_share"))
_ROW |= {"goodput_per_s": None, "cached_tokens": None}
OURS = "sparsekv"
TITLES = {
    "cold": "random ids, nothing cached",
    "hit": "random ids, prompt cached",
    "shared": "questions on a shared prefix",
    "offline": "offline engine",
    "program": "frontend programs",
}


def claims(content: dict[str, Any]) -> bool:
    """Whether a file is a sweep."""
    return content.get("bench") == "serving"


def section(source: Source) -> Section:
    """One sweep.

    Raises:
        ValueError: a field is missing or wrong.
    """
    if source.content.get("schema") != 1:
        raise ValueError(f"schema must be 1, got {source.content.get('schema')!r}")
    head = check(source.content.get("header"), _HEADER, "the header")
    rows = check_all(source.content.get("rows"), _ROW, "row")
    check_known(head, {"load_average": list, "gpu": list}, "the header")
    limits = check(head["goodput"], dict.fromkeys(head["goodput"], float), "goodput")
    looks = variants((str(row.get("method") or row["server"]), row["variant"]) for row in rows)
    body = [paragraph(_about(head)), charts(panels_of(rows, limits), looks)]
    body.append(details(f"All {len(rows)} points", _table(rows)))
    failures = source.content.get("failures") or []
    if failures:
        wanted: Wanted = {"point": str, "reason": str}
        lines = [(one["point"], one["reason"]) for one in check_all(failures, wanted, "failure")]
        body.append(f"<h4>Points without a measurement</h4>{table(('', 'reason'), lines, 'words')}")
    return Section(
        title=f"Serving: {head['model']}",
        gist=_gist(rows),
        rests_on=rests_on(head["environment"], _machine(head)),
        body="".join(body),
    )


def panels_of(rows: Sequence[Row], limits: dict[str, float]) -> list[Panel | Bars]:
    """Every question, answered in this run or not."""
    single = [row for row in rows if row["workload"] == "hit"]
    shared = [row for row in rows if row["workload"] == "shared"]
    closed = [row for row in shared if row["rate"] is None]
    offered = [row for row in shared if row["rate"] is not None]
    longest = max((row["context"] for row in shared), default=0)
    prefix = f"questions on a shared prefix of {longest:,} tokens"
    within = " and ".join(f"{name.upper()} ≤ {value:,.0f} ms" for name, value in limits.items())
    load = "offered rate, requests/s" if offered else "requests at a time"
    at_longest = [row for row in closed if row["context"] == longest]
    judged = [row for row in offered or closed if row["context"] == longest]
    return [
        Panel(
            title="Time between tokens against context",
            note="one request at a time, its prompt in the radix cache; shaded: up to p99",
            x="context, tokens",
            y="ITL, ms (median)",
            lines=_lines(single, _context, "itl_ms", reach="itl_p99_ms"),
            log_y=True,
            tokens=True,
        ),
        _speed_up(single),
        _first_token(rows),
        Panel(
            *("Throughput against concurrency", prefix, "requests at a time", "tokens/s"),
            _lines(at_longest, _load, "tokens_per_s"),
        ),
        Panel(
            *(f"Goodput: {within or 'no limits'}", prefix, load, "requests/s within the limits"),
            _lines(judged, _load, "goodput_per_s"),
        ),
        _by_tool(rows),
    ]


def _speed_up(single: Sequence[Row]) -> Panel:
    """Time between tokens of the first dense peer over that of each variant."""
    peer = next((row["variant"] for row in single if row["server"] != OURS), None)
    dense = {row["context"]: row["itl_ms"] for row in single if row["variant"] == peer}
    rows = [
        row | {"gain": dense[row["context"]] / row["itl_ms"]}
        for row in single
        if row["itl_ms"] and dense.get(row["context"])
    ]
    return Panel(
        title=f"Decode speed-up over {peer}" if peer else "Decode speed-up",
        note="its median ITL over that of the variant, same context, same run",
        x="context, tokens",
        y="times",
        lines=_lines(rows, _context, "gain"),
        tokens=True,
    )


def _first_token(rows: Sequence[Row]) -> Panel:
    cold = [row for row in rows if row["workload"] == "cold"]
    # What a request asks for does not change its prefill: one line per server.
    leads = {row["variant"] for row in cold}
    hit = [row for row in rows if row["workload"] == "hit" and row["variant"] in leads]
    rings = (Line(one.name, one.points, hollow=True) for one in _lines(hit, _context, "ttft_ms"))
    return Panel(
        title="Time to the first token",
        note="filled: nothing cached; rings: all but the last page in the radix cache",
        x="context, tokens",
        y="TTFT, ms (median)",
        lines=(*_lines(cold, _context, "ttft_ms"), *rings),
        log_y=True,
        tokens=True,
    )


def _by_tool(rows: Sequence[Row]) -> Bars:
    groups = []
    for workload in ("offline", "program"):
        some = [row for row in rows if row["workload"] == workload]
        longest = max((row["context"] for row in some), default=0)
        bars = tuple((r["variant"], r["tokens_per_s"]) for r in some if r["context"] == longest)
        if bars:
            groups.append((f"{TITLES[workload]}, {some[0]['requests']} requests", bars))
    note = "wall time with prefill; offline starts cold, programs find the document cached"
    return Bars("Throughput of the other two tools", note, "tokens/s", tuple(groups))


def _lines(
    rows: Sequence[Row], x: Callable[[Row], float], name: str, reach: str = ""
) -> tuple[Line, ...]:
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant and row[name] is not None]
        own = sorted((row for row in own if x(row) > 0), key=x)
        tops = tuple(max(row[name], row[reach] or row[name]) for row in own) if reach else ()
        lines.append(Line(variant, tuple((x(row), row[name]) for row in own), tops))
    return tuple(lines)


def _context(row: Row) -> float:
    return float(row["context"])


def _load(row: Row) -> float:
    return float(row["rate"] or row["concurrency"])


def _table(rows: Sequence[Row]) -> str:
    head = ["", "", "context", "load", "TTFT ms", "ITL ms", "p99", "tokens/s", "cached", "KV read"]
    lines = [
        [
            *(row["variant"], TITLES.get(row["workload"], row["workload"])),
            tokens(row["context"]),
            f"{row['rate']:g}/s" if row["rate"] is not None else f"{row['concurrency']}",
            *(number(row[name]) for name in ("ttft_ms", "itl_ms", "itl_p99_ms", "tokens_per_s")),
            number(row["cached_tokens"]),
            "all" if row["server"] != OURS else percent(row["kv_read"]),
            percent(row["goodput_share"]),
        ]
        for row in rows
    ]
    return table([*head, "in limits"], lines)


def _gist(rows: Sequence[Row]) -> str:
    alone = [row for row in rows if row["workload"] == "hit" and row["itl_ms"]]
    if not alone:
        return f"{len(rows)} points"
    longest = max(row["context"] for row in alone)
    here = [row for row in alone if row["context"] == longest]
    told = ", ".join(f"{row['variant']} {number(row['itl_ms'])} ms" for row in here[:4])
    return f"time between tokens at {tokens(longest)} tokens: {told}"


def _about(head: dict[str, Any]) -> str:
    text = "Servers have the same flags."
    if head["differences"]:
        text = f"Servers differ in: {'; '.join(map(str, head['differences']))}."
    load = numbers(head.get("load_average") or [], "load_average")
    return text + (f" Load {', '.join(f'{one:.1f}' for one in load)}." if load else "")


def _machine(head: dict[str, Any]) -> str | None:
    gpus = head.get("gpu")
    machine = head["environment"].get("machine")
    return f"{', '.join(map(str, gpus))}; {machine}" if gpus else machine


KIND = Kind("Serving", MEANS, False, claims, section)
