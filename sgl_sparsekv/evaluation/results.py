"""Results as JSON lines: a header, then one line per finished cell; appended, never overwritten."""

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..tooling.journal import append_lines, check_free, check_same, drop_torn_line, read_lines
from .settings import Reading
from .tasks.base import Part

SCHEMA = 2
MAY_GROW = ("concurrency", "lengths", "methods", "budgets", "samples", "tasks", "questions")
"""Settings that a resumed run may change: cells keep their meaning."""
DERIVED = "kv_bytes_read"
"""In a line: bytes of K and V that decode read, over all KV heads, steps and layers."""
Key = tuple[str, int, int, int, str, int | float]


@dataclass(frozen=True)
class Cell:
    """One question asked and answered in one way of reading.

    Attributes:
        task: row of a table: needle, niah_single_1, qasper.
        length: tokens it was made for; 0 where the data decides.
        sample: which of its task and length.
        nth: question of its document; of a needle map the row.
        method: how decode read.
        budget: of the method, as asked for and applied.
        metric: what `value` is.
        value: of the metric.
        place: share of the document before what was looked for, 0 to 1, or None.
        expected: answers that were right.
        said: what came instead, or one of those.
        detail: further numbers.
        prompt_tokens: of the prompt.
        cached_tokens: of those, in the radix cache.
        tokens_attended: read in decode per KV head, summed over steps and layers.
        tokens_in_context: what dense decode would have read, counted alike.
        decode_steps: decode steps of the request.
        seconds: until the answer was there.
    """

    task: str
    length: int
    sample: int
    nth: int
    method: str
    budget: int | float
    metric: str
    value: float
    place: float | None
    expected: tuple[str, ...]
    said: str
    prompt_tokens: int
    cached_tokens: int
    tokens_attended: int
    tokens_in_context: int
    decode_steps: int
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What it is known by in a run."""
        return (self.task, self.length, self.sample, self.nth, self.method, self.budget)


def key_of(part: Part, nth: int, reading: Reading) -> Key:
    """What a question's cell will be known by."""
    return (part.task, part.length, part.sample, nth, reading.method, reading.budget)


class Results:
    """A file of results, written from the first finished cell on."""

    def __init__(self, path: Path, task: str, settings: dict[str, Any], resume: bool) -> None:
        """Look at the file; nothing is written yet.

        Args:
            path: the file.
            task: name of the evaluation.
            settings: of this run, JSON.
            resume: go on with the file if it is there.

        Raises:
            ValueError: it is there and `resume` is false, or it is of another run.
        """
        self.path = path
        self.cells: list[Cell] = []
        head = {"schema": SCHEMA, "task": task, **settings}
        self.header: dict[str, Any] = {"kind": "header", **head}
        self._written = False
        self._lock = threading.Lock()
        check_free(path, resume)
        if path.exists():
            drop_torn_line(path)
            if path.stat().st_size:
                found, self.cells = read(path)
                check_same(path, found, json.loads(json.dumps(head)), MAY_GROW)
                self.header["kind"] = "resumed"

    def add(self, cell: Cell, about: dict[str, Any]) -> None:
        """Write one finished cell, now; safe to call from several threads.

        Args:
            cell: what was found.
            about: versions, commit, server; they stand in the header, before the first cell.
        """
        with self._lock:
            if not self._written:
                self.header |= about
                self._append(self.header)
                self._written = True
            size = self.header.get("kv_bytes_per_token")
            derived = {} if size is None else {DERIVED: cell.tokens_attended * size}
            self._append({"kind": "cell", **asdict(cell), **derived})
            self.cells.append(cell)

    def _append(self, line: dict[str, Any]) -> None:
        append_lines(self.path, json.dumps(line))


def read(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """Header and cells of a file.

    Raises:
        ValueError: it holds no evaluation's results.
    """
    lines = list(read_lines(path))
    if not lines or lines[0].get("kind") != "header" or lines[0].get("schema") != SCHEMA:
        raise ValueError(f"{path} must start with a header of schema {SCHEMA}")
    try:
        cells = [_cell(line) for line in lines if line["kind"] == "cell"]
    except (KeyError, TypeError):
        raise ValueError(f"{path} must hold cells of schema {SCHEMA}") from None
    return lines[0], cells


def _cell(line: dict[str, Any]) -> Cell:
    values = {name: value for name, value in line.items() if name not in ("kind", DERIVED)}
    return Cell(**{**values, "expected": tuple(values["expected"])})
