"""A whole run: stages one after the other, and everything written as it goes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.harvest.archive import (
    card_of,
    clear,
    rows_of,
    write_archive,
    write_report,
    write_rows,
)
from bench.gpu.harvest.drive import Drive, child
from bench.gpu.harvest.jobs import Stage
from bench.gpu.kernels import Run
from bench.gpu.log import FAILED, Check, Entry, Fact, Log
from bench.gpu.run import checkout_commit, summary


def harvest(
    stages: Sequence[Stage], logs: Path, archive: Path | None, end: float, commit: str | None
) -> int:
    """Run stages in processes until `end`; 1 if something failed.

    A run that is stopped has written what it found.
    """
    clear(logs)
    commit = commit or checkout_commit()

    def wrote(entries: list[Entry]) -> None:
        write_report(logs, entries, commit)
        if archive is not None:
            write_archive(archive, logs)

    drive = Drive(logs, end, lambda job: child(job, logs), wrote)
    try:
        drive.run(stages)
    finally:
        conclude(drive.entries, logs, archive, commit)
    return failed(drive.entries)


def conclude(entries: list[Entry], logs: Path, archive: Path | None, commit: str) -> None:
    """Write everything, and print what matters."""
    saved = [str(write_report(logs, entries, commit))]
    rows = write_rows(logs, entries, commit)
    saved += [] if rows is None else [str(rows)]
    gpu = card_of(entries)
    judged = [] if gpu is None else rows_of(entries, gpu, commit)
    print("\n" + summary(entries, judged, gpu))
    if archive is not None:
        left_out = write_archive(archive, logs)
        saved.append(str(archive) + (f" without {', '.join(left_out)}" if left_out else ""))
    print("\n" + "; ".join(saved), flush=True)


def rehearse(
    stages: Sequence[Stage], logs: Path, archive: Path | None, kernels: TritonOps | None = None
) -> int:
    """Every job at toy shapes in this process, in the interpreter; 1 if something failed.

    Nothing is timed: the clock counts one microsecond for everything, and no row is saved.
    """
    entries: list[Entry] = []
    for stage in stages:
        for job in stage.jobs[:1] if stage.name == "compile" else stage.jobs:
            torch.manual_seed(0)
            path = logs / f"{job.name}.jsonl"
            path.unlink(missing_ok=True)
            run = Run(Log(path), torch.device("cpu"), True, True, True, kernels)
            run.log.attempt(job.name, partial(job.run, run))
            entries += run.log.entries
            write_report(logs, entries, "rehearsed")
    timeless = [entry for entry in entries if not isinstance(entry, Fact)]
    rows = rows_of(timeless, "h200", "rehearsed")
    print("\n" + summary([entry for entry in entries if isinstance(entry, Check)], ()))
    print(f"rehearsed: {len(rows)} rows would be saved; nothing was timed")
    if archive is not None:
        write_archive(archive, logs)
    return failed(entries)


def failed(entries: Sequence[Entry]) -> int:
    """1 if a check failed."""
    return int(any(isinstance(e, Check) and e.status == FAILED for e in entries))
