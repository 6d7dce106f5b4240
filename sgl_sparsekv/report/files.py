"""Which files under a folder hold results, and what is said of the others."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .section import Kind, Section, Source

MOST_BYTES = 256 << 20
"""Of a file that is read as a whole."""
FIRST_LINE = 64 << 20
"""Of a line by which a file is known: a long prompt's answer may tell of every token."""


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        sections: (kind, source, section), by kind and then by name.
        unread: (name, reason) of files that look like results and are none.
        others: how many files of other endings there are, by ending.
    """

    sections: list[tuple[Kind, Source, Section]] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def under(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Files of a folder and its folders that may hold results, and how many others there are.

    Folders and files whose name begins with a dot are passed over; links to folders not followed.

    Raises:
        ValueError: it is no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a folder with results, there is none")
    paths: list[Path] = []
    others: Counter[str] = Counter()
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(at, name)
            if path.suffix in (".json", ".jsonl"):
                paths.append(path)
            else:
                others[path.suffix or "no ending"] += 1
    return paths, others


def read(paths: Sequence[Path], base: Path | None, kinds: Sequence[Kind]) -> Found:
    """Make a section of each file, or note why not.

    Args:
        paths: files.
        base: folder that names are relative to; None: names alone.
        kinds: what is known, in the order of the page.
    """
    found = Found()
    for path in paths:
        name = str(path.relative_to(base)) if base else path.name
        try:
            kind, source = recognise(path, name, kinds)
            found.sections.append((kind, source, kind.section(source)))
        except (ValueError, OSError) as error:
            found.unread.append((name, reason(error, path)))
    places = {kind.title: i for i, kind in enumerate(kinds)}
    found.sections.sort(key=lambda one: places[one[0].title])
    return found


def recognise(path: Path, name: str, kinds: Sequence[Kind]) -> tuple[Kind, Source]:
    """What a file is.

    Raises:
        ValueError: it is broken, or none of the kinds.
    """
    lines = path.suffix == ".jsonl"
    content = _first_line(path) if lines else _whole(path)
    for kind in kinds:
        first = content[0] if kind.many and isinstance(content, list) and content else content
        fits = kind.many or kind.lines == lines
        if fits and isinstance(first, dict) and kind.claims(first):
            return kind, Source(path, name, first)
    raise ValueError("is JSON, but of no kind of result that this page shows")


def reason(error: Exception, path: Path) -> str:
    """Why a file could not be shown, in a sentence without its name."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return str(error).replace(str(path), "it").removeprefix("it ")


def _whole(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None


def _first_line(path: Path) -> Any:
    with path.open("rb") as file:
        line = file.readline(FIRST_LINE)
    if not line.strip():
        raise ValueError("is empty")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON lines (line 1: {error})") from None
