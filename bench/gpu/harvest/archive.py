"""What a run leaves: report.json, a result file if there are rows, and one archive of all."""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu.log import Check, Entry, Measured
from bench.gpu.run import as_row, gpu_key, run_header
from bench.record import Row, device_facts, save

MOST_BYTES = 48 << 20
FIRST = ("report.json", "results")
"""Before the logs, so that they fit."""
LEFT = ("*.jsonl", "*.log", "*.xml", "*.ncu-rep", "report.*", "results/*/*.json")
"""What a run leaves in its folder of logs."""


def write_report(logs: Path, entries: Sequence[Entry], commit: str) -> Path:
    """All entries as one file, whole at every moment."""
    found = [{"kind": type(entry).__name__, **asdict(entry)} for entry in entries]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"when": when, "commit": commit, "device": device_of(entries), "entries": found}
    path, made = logs / "report.json", logs / "report.part"
    made.write_text(json.dumps(report, indent=1) + "\n")
    made.replace(path)
    return path


def device_of(entries: Sequence[Entry]) -> str:
    """What torch calls the GPU, as the job `machine` found; empty where it found none."""
    found = [e for e in entries if isinstance(e, Check) and (e.name, e.status) == ("device", "ok")]
    return found[0].detail if found else ""


def card_of(entries: Sequence[Entry]) -> str | None:
    """Key of `bench.model.GPUS`; by the driver's name where `machine` was not run."""
    return gpu_key(device_of(entries) or device_facts().get("name", ""))


def clear(logs: Path) -> None:
    """Remove what a run before has left."""
    for pattern in LEFT:
        for old in logs.glob(pattern):
            old.unlink()


def rows_of(entries: Sequence[Entry], gpu: str, commit: str) -> list[Row]:
    """Rows of the results; those that may not be judged have no target."""
    run = run_header(gpu, entries, commit)
    return [as_row(entry, run) for entry in entries if isinstance(entry, Measured)]


def write_rows(logs: Path, entries: Sequence[Entry], commit: str) -> Path | None:
    """The result file below `logs/results`; None without rows, or if the GPU is not known."""
    gpu = card_of(entries)
    rows = [] if gpu is None else rows_of(entries, gpu, commit)
    if gpu is None or not rows:
        return None
    return save(run_header(gpu, entries, commit), rows, logs / "results")


def write_archive(archive: Path, logs: Path, most: int = MOST_BYTES) -> list[str]:
    """Pack the logs, the most telling first; gives the names of files that were left out.

    What counts is the size before it is packed, so the archive is never larger than `most`.
    """
    files = [path for path in logs.rglob("*") if path.is_file() and path != archive]
    names = {path: str(path.relative_to(logs)) for path in files}
    first = {path: not name.startswith(FIRST) for path, name in names.items()}
    files.sort(key=lambda path: (first[path], path.stat().st_size, names[path]))
    left_out, size = [], 0
    made = archive.with_name(archive.name + ".part")
    with tarfile.open(made, "w:gz") as packed:
        for path in files:
            size += path.stat().st_size
            if path != made and size > most:
                left_out.append(names[path])
            elif path != made:
                packed.add(path, names[path])
    made.replace(archive)
    return left_out
