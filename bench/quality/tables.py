"""Tables of methods side by side."""

from collections.abc import Sequence

from bench.quality.results import Row
from bench.tables import table

COLUMNS = ["method", "budget", "metadata", "KV", "of dense", "recall", "mass", "error", "p90"]


def comparison(rows: Sequence[Row], context: int, quest_budget: int, equal: str = "bytes") -> str:
    """Every method at Quest's bytes (or budget), KiB of a step, layer and KV head."""
    chosen = [
        row
        for row in rows
        if (row.context, row.quest_budget, row.equal) == (context, quest_budget, equal)
    ]
    return table(COLUMNS, [_cells(row) for row in chosen])


def _cells(row: Row) -> list[object]:
    if row.budget is None or row.metadata_bytes is None or row.kv_bytes is None:
        return [row.method, "none", *[""] * 7]
    kib = (f"{row.metadata_bytes / 1024:.0f}", f"{row.kv_bytes / 1024:.0f}")
    figures = (row.recall, row.mass, row.error, row.error_p90)
    return [row.method, f"{row.budget:,}", *kib, f"{row.share:.1%}", *map(digits, figures)]


def digits(value: float | None) -> str:
    """Three places behind the point."""
    return "" if value is None else f"{value:.3f}"
