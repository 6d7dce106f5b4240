"""What the second act found, as JSON and as a table."""

from typing import Any

from .act import RealAct
from .score import RealRun, parted
from .script import Script

HEAD = ("", "tokens/s", "ms per step", "KV read", "agreement", "KL, nats", "worst")


def as_json(act: RealAct) -> dict[str, Any]:
    """`real` of `demo.json`; without runs, and with the reason, where the act was left out."""
    if act.script is None:
        return {"model": act.model, "skipped": act.skipped, "runs": []}
    return {
        "model": act.model,
        "text": act.script.source,
        "context_tokens": len(act.script.shared),
        "runs": [_run(run, act.script, act.runs[1]) for run in act.runs],
    }


def _run(run: RealRun, script: Script, dense: RealRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "options": run.options,
        "tokens_per_s": round(run.tokens_per_s, 2),
        "decode_ms_per_step": round(run.decode_ms_per_step, 3),
        "kv_read_fraction": run.kv_read_fraction,
        "metadata_read_fraction": run.metadata_read_fraction,
        "cached_tokens": run.cached_tokens,
        "agreement": run.agreement,
        "kl_nats": run.kl_nats,
        "worst_nats": run.worst_nats,
        "said": [
            {
                "asked": passage.title,
                "text": saying.text,
                "tokens": len(saying.ids),
                "as_dense": parted(first.ids, saying.ids),
            }
            for passage, saying, first in zip(
                script.passages, run.sayings, dense.sayings, strict=False
            )
        ],
    }


def table(act: RealAct) -> list[str]:
    """The runs as text, one line each, under what was read; or why there are none."""
    if act.script is None:
        return [f"second act left out: {act.skipped}"]
    rows = [HEAD, *table_rows(act)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join((row[0].ljust(widths[0]), *cells)))
    head = f"{act.model}, {len(act.script.shared):,} tokens of {act.script.source}"
    return [head, lines[0], "-" * len(lines[0]), *lines[1:]]


def table_rows(act: RealAct) -> list[tuple[str, ...]]:
    """Cells of the table, as text."""
    return [
        (
            run.name,
            f"{run.tokens_per_s:.1f}",
            f"{run.decode_ms_per_step:.1f}",
            f"{run.kv_read_fraction:.1%}",
            f"{run.agreement:.1%}",
            f"{run.kl_nats:.4f}",
            f"{run.worst_nats:.3f}",
        )
        for run in act.runs
    ]
