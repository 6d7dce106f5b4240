"""Decode speed of a whole server (`bench.serve` at one context): tokens per second by method."""

from typing import Any

from ..tooling.charts import Bars
from .fields import Wanted, check, check_all, check_known
from .looks import looks_of
from .markup import charts, number, paragraph, percent, table
from .section import Kind, Section, Source, rests_on

MEANS = (
    "Tokens per second of one request after its prompt is cached, median of the repeats. The ratio "
    "is over SGLang's own dense backend on a server of its own with the same flags, same run."
)
_TOP: Wanted = {
    "context": float,
    "budget": float,
    "layers": float,
    "batch": float,
    "environment": dict,
}
_ROW: Wanted = {"name": str, "tokens_per_s": float, "step_ms": None, "kv_read_fraction": None}
_ROW |= {"ratio": None}


def claims(content: dict[str, Any]) -> bool:
    """Whether a file is of `bench.serve` at one context."""
    return content.get("bench") == "serve"


def section(source: Source) -> Section:
    """One run.

    Raises:
        ValueError: a field is missing or wrong.
    """
    found = check(source.content, _TOP, "the file")
    rows = check_all(found.get("rows"), _ROW, "row")
    rows = [check_known(row, {"batch_tokens_per_s": float}, "a row") for row in rows]
    bars = tuple((row["name"], ((row["name"], row["tokens_per_s"]),)) for row in rows)
    chart = Bars("Decode speed", "tokens per second of one request", "tokens/s", bars)
    lines = [
        [
            *(row["name"], number(row["tokens_per_s"]), number(row["step_ms"])),
            *(percent(row["kv_read_fraction"]), number(row["ratio"], "x")),
            number(row.get("batch_tokens_per_s")),
        ]
        for row in rows
    ]
    head = ["", "tokens/s", "ms a step", "KV read", "ratio", f"tokens/s, {found['batch']} at once"]
    if found["batch"] == 1:
        head, lines = head[:-1], [line[:-1] for line in lines]
    about = (
        f"{found['layers']} layers, {found['context']:,} tokens of context, budget "
        f"{found['budget']:,}."
    )
    best = max(rows, key=lambda row: row["ratio"] or 0)
    return Section(
        title=f"Decode at {found['context']:,} tokens of context",
        gist=f"{best['name']}: {number(best['tokens_per_s'])} tokens/s, "
        f"{number(best['ratio'])} times as many as {rows[0]['name']}",
        rests_on=rests_on(found["environment"]),
        body=paragraph(about)
        + table(head, lines)
        + charts([chart], looks_of(row["name"] for row in rows)),
    )


KIND = Kind("Decode", MEANS, False, claims, section)
