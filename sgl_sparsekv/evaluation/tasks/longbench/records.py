"""Questions in LongBench's own JSONL form, read one at a time."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .datasets import METRIC, base, bucket


@dataclass(frozen=True)
class Record:
    """One line of a file.

    Attributes:
        input: the question; "" where the prompt is all.
        context: the document.
        answers: each of them is right.
        length: of the context in words, in characters for Chinese.
        classes: all labels of a classification.
    """

    input: str
    context: str
    answers: tuple[str, ...]
    length: int
    classes: tuple[str, ...]


class Records:
    """A set's file; only the places of its lines stay in memory."""

    def __init__(self, path: Path) -> None:
        """Read and check every line once.

        Raises:
            ValueError: the file is missing or a line has another form.
        """
        self._path = path
        self._classified = METRIC[base(path.stem)] == "classification"
        self.name = path.stem

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """Offsets of lines by row of a table: the set, or its bucket of LongBench-E."""
        found: dict[str, list[int]] = {}
        offset = 0
        try:
            with self._path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        length = self._parse(line, number).length
                        found.setdefault(self._row(length), []).append(offset)
                    offset += len(line)
        except OSError as error:
            raise ValueError(
                f"data must have the file {self._path.name}, got {str(self._path.parent)!r}: "
                f"{error.strerror}"
            ) from None
        if not found:
            raise ValueError(f"data must hold questions, got an empty {str(self._path)!r}")
        return found

    def read(self, offset: int) -> Record:
        """The line there."""
        with self._path.open("rb") as lines:
            lines.seek(offset)
            return self._parse(lines.readline(), 0)

    def _row(self, length: int) -> str:
        return f"{self.name} {bucket(length)}" if self.name.endswith("_e") else self.name

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            entry = json.loads(line)
            record = Record(
                input=_checked(entry, "input", str),
                context=_checked(entry, "context", str),
                answers=_texts(entry, "answers"),
                length=_checked(entry, "length", int),
                classes=_texts(entry, "all_classes") if self._classified else (),
            )
        except (ValueError, LookupError, TypeError) as error:
            where = f"{str(self._path)!r}" + (f", line {number}" if number else "")
            raise ValueError(f"data must be in LongBench's form, got {where}: {error}") from None
        return record


def _checked(entry: dict[str, Any], name: str, kind: type) -> Any:
    if name not in entry:
        raise ValueError(f"no {name}")
    if not isinstance(value := entry[name], kind):
        raise ValueError(f"{name} is {type(value).__name__} instead of {kind.__name__}")
    return value


def _texts(entry: dict[str, Any], name: str) -> tuple[str, ...]:
    values = _checked(entry, name, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} is not a list of texts")
    return tuple(values)
