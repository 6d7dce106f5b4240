"""Run parts in processes of their own, collect what they wrote, judge and save."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.checkout import ROOT
from bench.gpu.log import FAILED, OK, SKIPPED, Check, Entry, Fact, Measured, line, read
from bench.gpu.parts import Part
from bench.model import GPUS, Workload
from bench.record import Header, Row, header, row, save
from bench.targets import TARGETS
from sgl_sparsekv.tooling.journal import check_same

LEAST_SECONDS = 20
"""A part is not started with less time than this."""


@dataclass(frozen=True)
class Plan:
    """What the command line asks for.

    Attributes:
        parts: to run.
        out: folder of results.
        logs: folder of logs.
        quick: fewer shapes and repeats.
        seconds: of everything; None: each part has its own.
        commit: of a copy without history; None: asked of git.
        rehearse: toy shapes on a CPU.
        resume: parts that a run of the same settings finished are not run again.
    """

    parts: Sequence[Part]
    out: Path
    logs: Path
    quick: bool = False
    seconds: float | None = None
    commit: str | None = None
    rehearse: bool = False
    resume: bool = False

    def settings(self) -> dict[str, Any]:
        """What parts of one run have in common."""
        commit = self.commit or checkout_commit()
        return {"device": device_name(), "quick": self.quick, "commit": commit}


def run_all(plan: Plan) -> int:
    """Run, print a summary, save; 1 if something failed.

    Raises:
        ValueError: the run to go on with had other settings.
    """
    plan.logs.mkdir(parents=True, exist_ok=True)
    report = plan.logs / "report.json"
    if plan.resume and report.exists():
        check_same(report, json.loads(report.read_text()), plan.settings())
    for old in () if plan.resume else plan.logs.glob("*.jsonl"):
        old.unlink()
    end = None if plan.seconds is None else time.monotonic() + plan.seconds
    entries: list[Entry] = []
    try:
        for number, part in enumerate(plan.parts):
            rest = sum(other.seconds for other in plan.parts[number:])
            print(f"{number} of {len(plan.parts)} parts, at most {rest // 60} min left", flush=True)
            entries += finished(part, plan) or run_part(part, plan, end)
            write_report(plan, entries)
    finally:
        conclude(plan, entries)
    return int(any(isinstance(e, Check) and e.status == FAILED for e in entries))


def finished(part: Part, plan: Plan) -> list[Entry]:
    """Entries of a part that the run before has finished; empty where it has not."""
    entries = read(plan.logs / f"{part.name}.jsonl") if plan.resume else []
    done = any(isinstance(e, Check) and (e.name, e.status) == (part.name, OK) for e in entries)
    return entries if done else []


def run_part(part: Part, plan: Plan, end: float | None) -> list[Entry]:
    """Entries of one part; one that ends badly has an entry that says so."""
    left = float("inf") if end is None else end - time.monotonic()
    reason = "out of time" if left < LEAST_SECONDS else part.missing()
    if reason:
        print(line(part.skipped(reason)), flush=True)
        return [part.skipped(reason)]
    print(f"-- {part.name}: {part.answers}", flush=True)
    path, seconds = plan.logs / f"{part.name}.jsonl", min(part.seconds, left)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu", "--child", part.name, "--log", str(path)]
    command += ["--seconds", str(seconds - 5), *(["--quick"] if plan.quick else [])]
    command += ["--rehearse"] if plan.rehearse else []
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    try:
        code = process.wait(seconds)
        ended = "" if code == 0 else f"ended with {code}"
    except subprocess.TimeoutExpired:
        ended = f"ended after {seconds:.0f} s"
    finally:
        stop(process)
    entries = read(path)
    if ended or not entries:
        took = round(time.monotonic() - start, 1)
        entries.append(Check(part.name, FAILED, ended or "found nothing", took))
        print(line(entries[-1]), flush=True)
    return entries


def environment() -> dict[str, str]:
    """Of a part: importable from anywhere, and no look at the network."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it started."""
    try:
        os.killpg(process.pid, 15)
        process.wait(30)  # it ends its servers first
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


def conclude(plan: Plan, entries: list[Entry]) -> None:
    """Save the rows and print the summary."""
    saved = write_report(plan, entries)
    gpu = gpu_key(device_name())
    rows: list[Row] = []
    if gpu is None:
        saved += f"; {device_name()} is not in bench.model, so no row is saved"
    else:
        run = run_header(gpu, entries, plan.commit)
        rows = [as_row(one, run) for one in entries if isinstance(one, Measured)]
        if rows:
            saved += f"; {save(run, rows, plan.out)}"
    print(f"\n{summary(entries, rows, gpu)}\n\n{saved}", flush=True)


def write_report(plan: Plan, entries: list[Entry]) -> str:
    """All entries as one file, written anew after each part."""
    found = [{"kind": type(entry).__name__, **asdict(entry)} for entry in entries]
    path = plan.logs / "report.json"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    report = {"when": when, **plan.settings(), "entries": found}
    path.write_text(json.dumps(report, indent=1) + "\n")
    return str(path)


def run_header(gpu: str, entries: Sequence[Entry], commit: str | None) -> Header:
    """Header at this run's copy bandwidth."""
    found = [e.value for e in entries if isinstance(e, Fact) and e.name == "copy bandwidth"]
    return header(gpu, found[-1] if found else None, commit=commit or checkout_commit())


def as_row(one: Measured, run: Header) -> Row:
    """A row of the results; what may not be judged has no target."""
    work = Workload(one.context, one.batch, one.unit)
    peer = None if one.peer is None or one.peer_us is None else (one.peer, one.peer_us)
    made = row(one.name, work, one.us, run, median_us=one.median_us, peer=peer, note=one.note)
    return made if one.judged else replace(made, targets=())


def summary(entries: Sequence[Entry], rows: Sequence[Row], gpu: str | None = None) -> str:
    """What failed and was skipped, the facts, and a GPU's rows beside their floors and targets."""
    checks = [entry for entry in entries if isinstance(entry, Check)]
    counts = ", ".join(
        f"{sum(check.status == status for check in checks)} {status}"
        for status in (OK, FAILED, SKIPPED)
    )
    lines = [line(check) for check in checks if check.status != OK]
    lines += [line(entry) for entry in entries if isinstance(entry, Fact)]
    for one in rows:
        text = f"{one.name:14}{one.context:7} x {one.batch:<3} unit {one.unit:<3}"
        text += f"{one.measured_us:10.2f} us  floor {one.floor_us:8.2f}"
        text += "" if one.gain is None else f"  {one.gain:6.2f}x of {one.peer}"
        met = [f"{key}: {verdict(key, one, gpu)}" for key in one.targets if gpu is not None]
        lines.append("  ".join([text, *met]))
    return "\n".join([*lines, counts])


def verdict(key: str, one: Row, gpu: str) -> str:
    """Whether a row meets a target."""
    bound = TARGETS[key].bound(gpu, one.work)
    return f"{'met' if bound.met(one.measured_us, one.gain) else 'missed'} ({bound})"


def gpu_key(name: str) -> str | None:
    """Key of `bench.model.GPUS` for a device name."""
    return next((key for key in GPUS if key in name.lower().replace(" ", "")), None)


def device_name() -> str:
    """What torch calls the GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def checkout_commit() -> str:
    """Commit, with `+` if files were changed; empty where git or the history is missing."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
