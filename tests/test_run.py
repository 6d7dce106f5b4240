"""Every test is in one part of `tests/run.py`."""

from pathlib import Path

import pytest
import run

IGNORED, PACKAGE = "--ignore=", "__init__.py"


def taken(words: list[str], path: Path) -> bool:
    """Whether pytest's arguments lead to a file."""
    ignored = [Path(word.removeprefix(IGNORED)) for word in words if word.startswith(IGNORED)]
    folders = [Path(word) for word in words if not word.startswith(IGNORED)]
    found = any(folder in path.parents for folder in folders)
    return found and not any(folder in path.parents for folder in ignored)


def test_every_file_of_tests_is_in_one_part() -> None:
    files = sorted(run.TESTS.rglob("test_*.py"))
    assert len(files) > 80
    words = {part.name: run.words(part) for part in run.PARTS}
    parts = {path: [name for name in words if taken(words[name], path)] for path in files}
    assert {path: names for path, names in parts.items() if len(names) != 1} == {}
    assert {name for names in parts.values() for name in names} == set(words)


@pytest.mark.parametrize("folder", [folder for part in run.PARTS for folder in part.folders])
def test_folders_of_parts_are_there(folder: str) -> None:
    assert (run.TESTS / folder).is_dir()


def test_names_of_files_are_unique() -> None:
    """Pytest imports them by name where a folder is no package."""
    files = [path for path in run.TESTS.rglob("test_*.py") if not (path.parent / PACKAGE).exists()]
    names = sorted(path.name for path in files)
    assert names == sorted(set(names))
