"""Results in the folders that kvpress writes, so that they can stand beside its leaderboard.

A folder per length and way of reading: `config.yaml`, `metrics.json` and `predictions.csv`. Its
compression ratio is 1 - budget / length. Unlike a press, we keep the whole cache: the ratio is of
what decode reads, not of memory; `config.yaml` says so.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Cell, read

COLUMNS = (
    *("task", "predicted_answer", "answer", "score", "compression_ratio", "context_length"),
    *("sample", "question", "kv_read_fraction"),
)


def write_kvpress(results: Path, folder: Path) -> list[Path]:
    """Export a file of results; folders that are there already are not touched.

    Args:
        results: of an evaluation whose answers are judged.
        folder: where the folders go.

    Returns:
        The folders written.

    Raises:
        ValueError: all of it is there already.
    """
    header, cells = read(results)
    groups: dict[tuple[int, str, int | float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.length, cell.method, cell.budget), []).append(cell)
    written = []
    for (length, method, budget), own in groups.items():
        ratio = _ratio(length, method, budget, own)
        target = folder / "__".join(
            (
                str(header["task"]),
                str(length) if length else "all",
                Path(header["model"]).name,
                f"sparsekv_{method}",
                f"{ratio:.2f}",
            )
        )
        if target.exists():
            continue
        target.mkdir(parents=True)
        _write(target, header, own, ratio)
        written.append(target)
    if not written:
        raise ValueError(f"{folder} has these folders already; kvpress must name another")
    return written


def _ratio(length: int, method: str, budget: int | float, own: Sequence[Cell]) -> float:
    if method == "full":
        return 0.0
    if isinstance(budget, float):
        return 1 - budget
    tokens = length or sum(cell.prompt_tokens for cell in own) / len(own)
    return max(0.0, 1 - budget / tokens)


def _write(target: Path, header: dict[str, Any], own: Sequence[Cell], ratio: float) -> None:
    import yaml

    there = sum(cell.tokens_in_context for cell in own)
    read_share = sum(cell.tokens_attended for cell in own) / there if there else 1.0
    config = {
        "dataset": header["task"],
        "data_dir": str(own[0].length),
        "model": header["model"],
        "press_name": f"sparsekv_{own[0].method}",
        "compression_ratio": round(ratio, 4),
        "compression_ratio_means": "share of the context that decode does not read; "
        "all of it stays in the cache",
        "kv_read_fraction": round(read_share, 4),
        "query_aware": header.get("protocol") == "prefilled",
        **{name: value for name, value in header.items() if name not in ("kind", "model", "task")},
    }
    (target / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    tasks = sorted({cell.task for cell in own})
    metrics = {
        task: {_metric(own, task): round(100 * _mean([c for c in own if c.task == task]), 2)}
        for task in tasks
    }
    (target / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    with (target / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for c in own:
            share = c.tokens_attended / c.tokens_in_context if c.tokens_in_context else 1.0
            size = (round(ratio, 4), c.length, c.sample, c.nth, round(share, 6))
            writer.writerow((c.task, c.said, list(c.expected), c.value, *size))


def _metric(own: Sequence[Cell], task: str) -> str:
    name = next(cell.metric for cell in own if cell.task == task)
    return "string_match" if name.startswith("string_match") else name


def _mean(cells: Sequence[Cell]) -> float:
    return sum(cell.value for cell in cells) / len(cells)
