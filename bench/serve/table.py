"""A sweep as text."""

from collections.abc import Sequence

from bench.serve.grid import OURS
from bench.serve.results import Result, Row
from bench.tables import number, tokens
from sgl_sparsekv.report.serving import TITLES

HEAD = (
    *("", "context", "load", "TTFT ms", "ITL ms", "p99", "tokens/s", "cached", "KV read"),
    *("goodput", "ITL gain"),
)


def text(result: Result) -> str:
    """Header, a table per workload, failures."""
    where, head = result.header.environment, result.header
    parts = [
        f"{where['machine']}, {where['threads'] or 'default'} threads, load "
        f"{head.load_average[0]:.1f} before and {head.load_average[1]:.1f} after; SGLang "
        f"{where['sglang']}, torch {where['torch']}, commit {where['commit']}, {where['when']}",
        head.model,
        "Servers get the same flags but for:",
        *(f"  {one}" for one in head.differences),
    ]
    for workload, title in TITLES.items():
        rows = [row for row in result.rows if row.workload == workload]
        if rows:
            parts += ["", title, *lines([HEAD, *(cells(row, rows) for row in rows)])]
    if result.failures:
        parts += ["", *(f"failed: {one.point}: {one.reason}" for one in result.failures)]
    return "\n".join(parts)


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """One line; the gain is over the first dense peer at the same place."""
    gain = gain_over_peer(row, rows)
    read = "all" if row.server != OURS else "" if row.kv_read is None else f"{row.kv_read:.1%}"
    share = "" if row.goodput_share is None else f"{row.goodput_share:.0%}"
    cached = "" if row.cached_tokens is None else f"{row.cached_tokens:,.0f}"
    return (
        *(row.variant, tokens(row.context)),
        f"{row.rate:g}/s" if row.rate is not None else f"{row.concurrency}",
        *(number(value) for value in (row.ttft_ms, row.itl_ms, row.itl_p99_ms, row.tokens_per_s)),
        *(cached, read, share, "" if gain is None else f"{gain:.2f}x"),
    )


def gain_over_peer(row: Row, rows: Sequence[Row]) -> float | None:
    """The first peer's median time between tokens over this row's, where both are known."""
    place = (row.workload, row.context, row.concurrency, row.rate)
    for other in rows:
        there = (other.workload, other.context, other.concurrency, other.rate)
        if other.server != OURS and there == place:
            return other.itl_ms / row.itl_ms if other.itl_ms and row.itl_ms else None
    return None


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    found = [
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return [found[0], "-" * len(found[0]), *found[1:]]
