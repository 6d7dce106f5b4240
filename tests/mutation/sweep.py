"""Which mutants are tried, in which order, by which tests. mutmut makes the mutants, says which
tests reach a function and how long each takes, and keeps the verdicts in `mutants/`."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import pytest
from mutmut.__main__ import collect_or_load_stats, create_mutants
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import (
    change_cwd,
    copy_also_copy_files,
    copy_src_dir,
    setup_source_paths,
    walk_mutatable_files,
)
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import get_mutant_runner

from .survivors import LIVES
from .trials import Function, Trials

LONGEST, BUDGET = 0.5, 0.5
"""Seconds that a test of another file than the module's own may take; and all of them together."""


def sweep(patterns: Sequence[str], again: bool) -> int:
    """Try the mutants of these patterns that have no verdict, or anew those that live.

    Returns:
        pytest's exit status, not 0 where tests cannot be collected.
    """
    _prepare()
    trials = Trials(list(_functions(patterns, again)))
    settings = config()
    arguments = ("-qq", "--tb=native", *settings.pytest_add_cli_args)
    with change_cwd("mutants"):
        return pytest.main(
            ["--rootdir=.", *arguments, *settings.pytest_add_cli_args_test_selection],
            plugins=[trials],
        )


def _prepare() -> None:
    """Mutants of the sources as they are, and the tests that reach each function."""
    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(max_children=1)
    collect_or_load_stats(get_mutant_runner(), apply_config_invalidation=True)


def _functions(patterns: Sequence[str], again: bool) -> Iterator[Function]:
    """Functions with mutants to try, in the order of `only_mutate` in pyproject.toml."""
    for path in sorted(walk_mutatable_files(), key=_place):
        data = SourceFileMutationData(path=path)
        data.load()
        wanted = [
            name
            for name, code in data.exit_code_by_key.items()
            if (status_by_exit_code[code] in LIVES if again else code is None)
            and (not patterns or any(fnmatch(name, pattern) for pattern in patterns))
        ]
        for function, mutants in groupby(wanted, key=mangled_name_from_mutant_name):
            reached_by = state().tests_by_mangled_function_name.get(function, set())
            yield Function(function, tuple(mutants), unit_tests(path, reached_by), data)


def _place(path: Path) -> tuple[int, str]:
    patterns = config().only_mutate
    return next(i for i, one in enumerate(patterns) if fnmatch(str(path), one)), str(path)


def unit_tests(source: Path, reached_by: set[str]) -> tuple[str, ...]:
    """Tests of a function: those of its module's own file, then the quickest; file by file."""
    seconds = state().duration_by_test
    own = f"/test_{source.stem}.py::"
    quick = [test for test in reached_by if own in test or seconds[test] <= LONGEST]
    files: dict[str, list[str]] = {}
    spent = 0.0
    for test in sorted(quick, key=lambda test: (own not in test, seconds[test], test)):
        spent += 0.0 if own in test else seconds[test]
        if spent <= BUDGET:
            files.setdefault(test.partition("::")[0], []).append(test)
    return tuple(test for tests in files.values() for test in tests)
