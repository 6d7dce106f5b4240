"""What the demo found, as JSON and as a table."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from .checks import Check
from .scenario import Scenario
from .score import RunScore

SCHEMA = 1


def as_json(
    scenario: Scenario,
    runs: Sequence[RunScore],
    checks: Sequence[Check],
    seconds: float,
    lost_records: int,
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


def environment() -> dict[str, Any]:
    """Machine, versions and commit: what a figure means nothing without."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib()} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sgl_sparsekv": __version__,
        "commit": commit(),
        **{name: _version(name) for name in ("sglang", "torch", "transformers")},
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def cpu_name() -> str:
    """The processor as the kernel calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The checkout's commit, with `+` if it was changed; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


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


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
