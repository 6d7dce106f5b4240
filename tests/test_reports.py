"""Each public report that could be true of us ends in a test, or is said to be open."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "invariants.md").read_text()
ROWS = re.findall(r"^\| ([AB]\d+) \|.*\| (.+) \| (.*) \|$", PAGE, re.M)
"""(number, how it ends, tests)."""


@cache
def functions(file: str) -> frozenset[str]:
    """Names of the functions of a test file."""
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def test_each_report_has_one_row() -> None:
    """Numbered once."""
    numbers = [number for number, _, _ in ROWS]
    assert len(numbers) == len(set(numbers)) == 36


@pytest.mark.parametrize(("number", "ends", "tests"), ROWS, ids=lambda value: str(value)[:4])
def test_a_report_ends_in_tests_that_exist(number: str, ends: str, tests: str) -> None:
    """A row without one says that it is open."""
    named = re.findall(r"`([\w/.:]+)`", tests)
    assert named or "**open**" in ends, number
    for one in named:
        file, _, function = one.partition("::")
        assert not function or function in functions(file), one
        assert function or any(name.startswith("test_") for name in functions(file)), one
