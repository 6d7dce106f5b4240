"""Run stages of jobs in processes of their own within a bound that is kept.

The processes of a stage are started while the one before it runs: they import what they need and
wait for a line that says how many seconds they have.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.checkout import ROOT
from bench.gpu.harvest.jobs import Job, Stage
from bench.gpu.log import FAILED, OK, SKIPPED, Check, Entry, line, read
from bench.gpu.run import environment

LEAST_SECONDS = 5.0
"""A stage is not started with less time than this."""
MARGIN = 3.0
"""A job starts nothing new so long before it is ended."""
POLL = 0.05
Command = Callable[[Job], list[str]]


@dataclass
class Running:
    """A job's process.

    Attributes:
        job: which.
        process: it, with all that it starts in a group of its own.
        seen: entries that were shown.
    """

    job: Job
    process: "subprocess.Popen[bytes]"
    seen: int = 0


@dataclass
class Drive:
    """One run.

    Attributes:
        logs: folder of logs and entries.
        end: `time.monotonic()` after which nothing runs.
        command: of a job, which waits on its standard input for its seconds.
        wrote: is called with all entries whenever a stage has ended.
        entries: what was found.
    """

    logs: Path
    end: float
    command: Command
    wrote: Callable[[list[Entry]], None] = lambda entries: None
    entries: list[Entry] = field(default_factory=list)
    waiting: list[Running] = field(default_factory=list)

    def run(self, stages: Sequence[Stage]) -> list[Entry]:
        """All stages; each has its share of the time that is left."""
        try:
            for number, stage in enumerate(stages):
                left = self.end - time.monotonic()
                weight = stage.seconds / sum(later.seconds for later in stages[number:])
                self._stage(stage, left * weight, stages[number + 1 : number + 2])
                self.wrote(self.entries)
        finally:
            stop([one.process for one in self.waiting])
        return self.entries

    def _stage(self, stage: Stage, limit: float, following: Sequence[Stage]) -> None:
        if limit < LEAST_SECONDS:
            for job in stage.jobs:
                self._add(Check(job.name, SKIPPED, "cut: out of time"))
            return
        print(f"-- {stage.name}, {limit:.0f} s at most: {stage.answers}", flush=True)
        start = time.monotonic()
        running, self.waiting = self.waiting or [self._start(job) for job in stage.jobs], []
        try:
            for one in running:
                go(one.process, limit - MARGIN)
            for later in following:
                self.waiting = [self._start(job) for job in later.jobs]
            while running and time.monotonic() < start + limit:
                for one in [one for one in running if one.process.poll() is not None]:
                    self._finish(one, start)
                    running.remove(one)
                for one in running:
                    self._show(one)
                time.sleep(POLL)
        finally:
            stop([one.process for one in running])
        for one in running:
            self._finish(one, start, f"ended after {limit:.0f} s")

    def _start(self, job: Job) -> Running:
        with (self.logs / f"{job.name}.log").open("wb") as file:
            process = subprocess.Popen(
                self.command(job), cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return Running(job, process)

    def _finish(self, one: Running, start: float, ended: str = "") -> None:
        """Keep what a job found, and say so if it did not end well."""
        self._show(one)
        entries, seconds = self._read(one.job), round(time.monotonic() - start, 1)
        code = one.process.returncode
        if not ended and code:
            ended = f"ended with {code}: {last_words(self.logs / f'{one.job.name}.log')}"
        if not ended and not entries:
            ended = "found nothing"
        self.entries += entries
        self._add(Check(one.job.name, FAILED if ended else OK, ended, seconds))

    def _read(self, job: Job) -> list[Entry]:
        return read(self.logs / f"{job.name}.jsonl")

    def _show(self, one: Running) -> None:
        """Print what a job has found since."""
        entries = self._read(one.job)
        for entry in entries[one.seen :]:
            print(line(entry), flush=True)
        one.seen = len(entries)

    def _add(self, entry: Check) -> None:
        self.entries.append(entry)
        print(line(entry), flush=True)


def child(job: Job, logs: Path, *flags: str) -> list[str]:
    """The command of a job."""
    module = [sys.executable, "-m", "bench.gpu.harvest", "--child", job.name]
    return [*module, "--logs", str(logs), *flags]


def go(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Let a job that waits begin; it starts nothing new after so many seconds."""
    assert process.stdin is not None
    try:
        process.stdin.write(f"{seconds:.1f}\n".encode())
        process.stdin.close()
    except BrokenPipeError:
        return  # it has died: `_finish` says so


def last_words(log: Path) -> str:
    """Last line of a job's output."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else "it said nothing"


def stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End processes and all that they started; one that the driver holds is not waited for."""
    for end, patience in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 2.0)):
        for process in processes:
            try:
                os.killpg(process.pid, end)
            except ProcessLookupError:
                continue
        until = time.monotonic() + patience
        while time.monotonic() < until and any(one.poll() is None for one in processes):
            time.sleep(POLL)
