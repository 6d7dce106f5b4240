"""Which mutants are tried, in which order, and by which tests."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name

from .survivors import LIVES
from .trials import Function

LONGEST, BUDGET = 0.5, 0.5
"""Seconds that a test of another file than the module's own may take; and all of them together."""


def functions_to_try(patterns: Sequence[str], again: bool) -> Iterator[Function]:
    """Functions with mutants to try, in the order of `only_mutate` in pyproject.toml.

    Args:
        patterns: of mutants' names; none: all.
        again: those that live, beside those without a verdict; mutmut drops verdicts where its
            settings are others.
    """
    for path in sorted(walk_mutatable_files(), key=_place):
        data = SourceFileMutationData(path=path)
        data.load()
        wanted = [
            name
            for name, code in data.exit_code_by_key.items()
            if (code is None or (again and status_by_exit_code[code] in LIVES))
            and (not patterns or any(fnmatch(name, pattern) for pattern in patterns))
        ]
        for function, mutants in groupby(wanted, key=mangled_name_from_mutant_name):
            reached_by = state().tests_by_mangled_function_name.get(function, set())
            tests = unit_tests(path.stem, reached_by, state().duration_by_test)
            yield Function(function, tuple(mutants), tests, data)


def _place(path: Path) -> tuple[int, str]:
    patterns = config().only_mutate
    return next(i for i, one in enumerate(patterns) if fnmatch(str(path), one)), str(path)


def unit_tests(module: str, reached_by: set[str], seconds: dict[str, float]) -> tuple[str, ...]:
    """Tests of a function: those of its module's own file, then the quickest; file by file."""
    own = f"/test_{module}.py::"
    quick = [test for test in reached_by if own in test or seconds[test] <= LONGEST]
    files: dict[str, list[str]] = {}
    spent = 0.0
    for test in sorted(quick, key=lambda test: (own not in test, seconds[test], test)):
        spent += 0.0 if own in test else seconds[test]
        if spent <= BUDGET:
            files.setdefault(test.partition("::")[0], []).append(test)
    return tuple(test for tests in files.values() for test in tests)
