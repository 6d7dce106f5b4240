"""What the demo found, as JSON and as a table."""

from collections.abc import Sequence
from typing import Any

from ..tooling.environment import environment
from .checks import Check
from .real.act import RealAct
from .real.result import as_json as real_json
from .scenario import Scenario
from .score import RunScore

SCHEMA = 1


def as_json(
    scenario: Scenario,
    runs: Sequence[RunScore],
    checks: Sequence[Check],
    seconds: float,
    lost_records: int,
    real: RealAct,
) -> dict[str, Any]:
    """The content of `demo.json`."""
    return {
        "schema": SCHEMA,
        "passed": all(check.passed for check in checks),
        "context_tokens": scenario.document_tokens,
        "questions": len(scenario.questions),
        "answer_tokens": scenario.answer_tokens,
        "model": scenario.model,
        "seconds": round(seconds, 1),
        "runs": [_run(run, scenario) for run in runs],
        "checks": [
            {"text": check.text, "passed": check.passed, "found": check.found} for check in checks
        ],
        "real": real_json(real),
        "trace_records_lost": lost_records,
        "environment": environment(),
    }


def _run(run: RunScore, scenario: Scenario) -> dict[str, Any]:
    return {
        "name": run.name,
        "options": run.options,
        "correct": run.correct,
        "questions": run.questions,
        "kv_read_fraction": run.kv_read_fraction,
        "metadata_read_fraction": run.metadata_read_fraction,
        "cached_tokens": run.cached_tokens,
        "decode_ms_per_step": round(run.decode_ms_per_step, 3),
        "tokens_per_s": round(run.tokens_per_s, 2),
        "answers": [
            {
                "question": scenario.questions[answer.question].prompt.strip(),
                "expected": " ".join(scenario.questions[answer.question].answer),
                "said": answer.text.strip(),
                "right": right,
                "concurrent": answer.concurrent,
                "cached_tokens": answer.cached_tokens,
                "decode_steps": answer.decode_steps,
                "decode_ms": round(1000 * answer.decode_seconds, 2),
            }
            for answer, right in zip(run.answers, run.right, strict=True)
        ],
    }


def table(runs: Sequence[RunScore]) -> str:
    """The runs as text, one line each."""
    rows = [("", "right", "cached tokens", "KV read", "ms per step", "tokens/s"), *table_rows(runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join((first, *rest)))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def table_rows(runs: Sequence[RunScore]) -> list[tuple[str, ...]]:
    """Cells of the table, as text."""
    return [
        (
            run.name,
            f"{run.correct} of {run.questions}",
            f"{run.cached_tokens:,}",
            f"{run.kv_read_fraction:.1%}",
            f"{run.decode_ms_per_step:.1f}",
            f"{run.tokens_per_s:.0f}",
        )
        for run in runs
    ]
