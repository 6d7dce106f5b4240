"""Texts and prompts from files in their published form."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """A text of a file.

    Attributes:
        name: file, and line where it has several.
        text: what is read.
        continuation: what follows it, or "" where the file has none.
    """

    name: str
    text: str
    continuation: str = ""


def read_texts(path: Path, field: str) -> list[Text]:
    """Texts of a `.txt` file, of a folder of such (PG19's form), or of a `.jsonl` file.

    Args:
        path: file or folder.
        field: which field of a JSON line is the text; `continuation` is taken along.

    Raises:
        ValueError: nothing is there, or a line is not of that form.
    """
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise ValueError(f"data must be a folder with .txt files, got {str(path)!r}")
        return [Text(file.name, file.read_text()) for file in files]
    if not path.is_file():
        raise ValueError(f"data must be a file or a folder, got {str(path)!r}")
    if path.suffix == ".txt":
        return [Text(path.name, path.read_text())]
    found = list(_lines(path, field))
    if not found:
        raise ValueError(f"data must hold at least one line, {path} is empty")
    return found


def _lines(path: Path, field: str) -> Iterator[Text]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get(field), str):
            raise ValueError(f"{path} must have a JSON object with {field!r} in line {number}")
        yield Text(f"{path.name}:{number}", found[field], str(found.get("continuation", "")))
