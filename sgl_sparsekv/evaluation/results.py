"""Results as JSON lines: a header, then one line per finished cell; appended, never overwritten."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .settings import Settings

SCHEMA = 1
MAY_GROW = ("lengths", "methods", "samples")
"""Settings that a resumed run may change: cells keep their meaning."""
Key = tuple[str, int, int, int]


@dataclass(frozen=True)
class Cell:
    """One question asked and answered.

    Attributes:
        method: how decode read.
        length: column, in tokens.
        depth: row, an index.
        sample: which document.
        place: share of the document before the needle, 0 to 1.
        right: answered right.
        expected: the answer asked for.
        said: what came instead, or that.
        budget: as the server applied it.
        prompt_tokens: of the prompt.
        cached_tokens: of those, in the radix cache.
        tokens_attended: read in decode per KV head, summed over steps and layers.
        tokens_in_context: what dense decode would have read, counted alike.
        decode_steps: decode steps of the request.
        seconds: until the answer was there.
    """

    method: str
    length: int
    depth: int
    sample: int
    place: float
    right: bool
    expected: str
    said: str
    budget: int | float
    prompt_tokens: int
    cached_tokens: int
    tokens_attended: int
    tokens_in_context: int
    decode_steps: int
    seconds: float

    @property
    def key(self) -> Key:
        """What it is known by in a run."""
        return (self.method, self.length, self.depth, self.sample)


class Results:
    """A file of results, written from the first finished cell on."""

    def __init__(self, path: Path, settings: Settings, resume: bool) -> None:
        """Look at the file; nothing is written yet.

        Args:
            path: the file.
            settings: of this run.
            resume: go on with the file if it is there.

        Raises:
            ValueError: it is there and `resume` is false, or it is of another run.
        """
        self.path = path
        self.cells: list[Cell] = []
        head = {"schema": SCHEMA, "task": "needle", **settings.as_dict()}
        self._header: dict[str, Any] | None = {"kind": "header", **head}
        check_free(path, resume)
        if path.exists():
            _drop_torn_line(path)
            if path.stat().st_size:
                found, self.cells = read(path)
                _same_run(path, found, json.loads(json.dumps(head)))
                self._header["kind"] = "resumed"

    def add(self, cell: Cell, about: dict[str, Any]) -> None:
        """Write one finished cell, now.

        Args:
            cell: what was found.
            about: versions, commit, server; they stand in the header, before the first cell.
        """
        if self._header is not None:
            self._append({**self._header, **about})
            self._header = None
        self._append({"kind": "cell", **asdict(cell)})
        self.cells.append(cell)

    def _append(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def check_free(path: Path, resume: bool) -> None:
    """Complain about a file that must not be written.

    Raises:
        ValueError: it is there and `resume` is false.
    """
    if path.exists() and not resume:
        raise ValueError(f"{path} is there already; --resume goes on with it, --out names another")


def read(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """Header and cells of a file.

    Raises:
        ValueError: it is no file of needle results.
    """
    lines = list(_lines(path))
    if not lines or lines[0].get("kind") != "header" or lines[0].get("schema") != SCHEMA:
        raise ValueError(f"{path} must start with a header of schema {SCHEMA}")
    try:
        cells = [
            Cell(**{name: value for name, value in line.items() if name != "kind"})
            for line in lines
            if line["kind"] == "cell"
        ]
    except (KeyError, TypeError):
        raise ValueError(f"{path} must hold cells of schema {SCHEMA}") from None
    return lines[0], cells


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise ValueError(f"{path} must be JSON lines, line {number} is not")
        yield line


def _drop_torn_line(path: Path) -> None:
    """A run that was killed may have left half a line."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _same_run(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name not in MAY_GROW and found.get(name) != value:
            raise ValueError(f"{path} has {name} {found.get(name)!r}, asked for is {value!r}")
