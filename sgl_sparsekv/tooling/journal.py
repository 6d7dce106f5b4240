"""What a long run has found so far: JSON lines that a later run goes on with."""

import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from .progress import Progress

GO_ON = "--resume"
"""Flag of every command that keeps a journal."""


class Journal:
    """Findings by name, each written as soon as it is there, and how long the rest will take."""

    def __init__(
        self,
        path: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Look at the file; nothing is written yet.

        Args:
            path: the file; None: memory only.
            settings: what findings depend on, JSON; a run with others cannot be gone on with.
            resume: go on with the file if it is there.
            progress: told after each finding; None: nobody is.

        Raises:
            ValueError: it is there and `resume` is false, or it is of another run.
        """
        self.path = path
        self.total = 0
        self._head = json.loads(json.dumps({"kind": "settings", **(settings or {})}))
        self._found: dict[str, Any] = {}
        self._progress = progress
        if path is None:
            return
        check_free(path, resume)
        if path.exists():
            drop_torn_line(path)
            lines = list(read_lines(path))
            if lines:
                check_same(path, lines[0], self._head)
            self._found = {line["name"]: line["value"] for line in lines[1:]}

    def expect(self, count: int) -> None:
        """Say how many more findings the run will ask for, those of the file included."""
        self.total += count
        if self._progress is not None:
            self._progress.count(len(self._found), self.total, "of the run are there")

    def get(self, name: str) -> Any | None:
        """A finding, or None where it is not there yet."""
        return self._found.get(name)

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """A finding as JSON gives it back: of the file, or else found and written now."""
        if name not in self._found:
            text = json.dumps({"name": name, "value": find()})
            if self.path is not None:
                first = not self.path.exists() or not self.path.stat().st_size
                append_lines(self.path, *([json.dumps(self._head)] if first else []), text)
            self._found[name] = json.loads(text)["value"]
            if self._progress is not None:
                self._progress.count(len(self._found), self.total, name)
        return self._found[name]

    def finish(self) -> None:
        """Take the file away: the run's result stands elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def stopped(self) -> str:
        """What to tell who interrupted the run."""
        return f"stopped; {GO_ON} goes on with {len(self._found)} of {self.total} in {self.path}"


def append_lines(path: Path, *lines: str) -> None:
    """Write lines behind what a file holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines.

    Raises:
        ValueError: a line is none.
    """
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise ValueError(f"{path} must be JSON lines, line {number} is not")
        yield line


def check_free(path: Path, resume: bool) -> None:
    """Complain about a file that must not be written.

    Raises:
        ValueError: it is there and `resume` is false.
    """
    if path.exists() and not resume:
        raise ValueError(f"{path} is there already; {GO_ON} goes on with it, --out names another")


def check_same(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], may_differ: Container[str] = ()
) -> None:
    """Complain about a file of other settings than the run's.

    Raises:
        ValueError: one differs that may not.
    """
    for name, value in wanted.items():
        if name not in may_differ and found.get(name) != value:
            raise ValueError(f"{path} has {name} {found.get(name)!r}, asked for is {value!r}")


def drop_torn_line(path: Path) -> None:
    """Take away half a line that a killed run may have left."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
