"""What a part found, one JSON line each, written at once: a part that is killed keeps it."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
OK, FAILED, SKIPPED = "ok", "failed", "skipped"


class Skip(Exception):
    """Something is missing; the reason is one sentence."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what.
        status: ok, failed or skipped.
        detail: last line of the traceback, the reason, or what was found.
        seconds: how long it took.
    """

    name: str
    status: str
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Fact:
    """A figure that no target judges."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Measured:
    """What becomes a row of the results.

    Attributes:
        name: a key of `bench.targets.NAMES`.
        context: tokens per request.
        batch: requests.
        unit: tokens per unit.
        us: least of the repeats, microseconds.
        median_us: median of the repeats.
        peer: name of the fastest peer that ran; None: none did.
        peer_us: its least.
        judged: a target may judge it: the peer that the target means ran, or it means none.
        note: what a reader must know.
    """

    name: str
    context: int
    batch: int
    unit: int
    us: float
    median_us: float
    peer: str | None = None
    peer_us: float | None = None
    judged: bool = True
    note: str = ""


Entry = Check | Fact | Measured
KINDS = {kind.__name__: kind for kind in (Check, Fact, Measured)}


class Log:
    """Entries of one part.

    Args:
        path: file of JSON lines; None: memory only.
        deadline: `time.monotonic()` after which nothing new is tried.
    """

    def __init__(self, path: Path | None = None, deadline: float | None = None) -> None:
        self.path, self.deadline = path, deadline
        self.entries: list[Entry] = []
        self.known = {} if path is None else gates_of(path.with_name("gate.jsonl"))
        self.bandwidth = None if path is None else copied(path.with_name("bandwidth.jsonl"))

    def add(self, entry: Entry) -> None:
        """Keep, write and print an entry."""
        self.entries.append(entry)
        print(line(entry), flush=True)
        if self.path is not None:
            record = {"kind": type(entry).__name__, **asdict(entry)}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def attempt(self, name: str, call: Callable[[], Result]) -> Result | None:
        """Run something; what it raises is recorded and stops nothing else."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.add(Check(name, SKIPPED, "out of time"))
            return None
        start, result = time.monotonic(), None
        try:
            result = call()
            check = Check(name, OK, result if isinstance(result, str) else "")
        except Skip as reason:
            check = Check(name, SKIPPED, str(reason))
        except Exception as error:
            traceback.print_exc()
            check = Check(name, FAILED, last_line(error))
        self.add(Check(name, check.status, check.detail, round(time.monotonic() - start, 1)))
        free_memory()
        return result


def read(path: Path) -> list[Entry]:
    """Entries of a file; a last line cut short is left out."""
    entries: list[Entry] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        entries.append(KINDS[found.pop("kind")](**found))
    return entries


def gates_of(path: Path) -> dict[str, str]:
    """Name -> status of the gates that another part of this run has judged."""
    found = {entry.name: entry.status for entry in read(path) if isinstance(entry, Check)}
    return {name: status for name, status in found.items() if name.startswith("gate ")}


def copied(path: Path) -> float | None:
    """Copy bandwidth, in 1e12 bytes per second, that another part of this run has measured."""
    facts = [entry for entry in read(path) if isinstance(entry, Fact)]
    return next((fact.value for fact in facts if fact.name == "copy bandwidth"), None)


def last_line(error: BaseException) -> str:
    """Last line of an error's traceback, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()
    if isinstance(error, SyntaxError):
        text = [f"SyntaxError: {error.msg}"]
    return (text[0] if text else type(error).__name__)[:400] + place


def line(entry: Entry) -> str:
    """One printed line."""
    if isinstance(entry, Check):
        return f"{entry.status:8}{entry.name} ({entry.seconds:.1f} s) {entry.detail}".rstrip()
    if isinstance(entry, Fact):
        return f"{'fact':8}{entry.name}: {entry.value:.4g} {entry.unit}"
    text = f"{'time':8}{entry.name} {entry.context} x {entry.batch}, unit {entry.unit}: "
    text += f"{entry.us:.2f} us (median {entry.median_us:.2f})"
    if entry.peer_us:
        text += f"; {entry.peer} {entry.peer_us:.2f} us = {entry.peer_us / entry.us:.2f}x"
    return f"{text} {entry.note}".rstrip()


def free_memory() -> None:
    """Give back what a failed or finished attempt held on the device."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            return  # the CUDA context is broken: every later attempt of this part will say so
