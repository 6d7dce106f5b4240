"""A sweep: mutmut makes the mutants, says which tests reach a function and keeps the verdicts.

Its own runner would start pytest anew for each mutant; `trials` does not.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
from mutmut.__main__ import collect_or_load_stats, create_mutants
from mutmut.configuration import config
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.utils.file_utils import (
    change_cwd,
    copy_also_copy_files,
    copy_src_dir,
    setup_source_paths,
)
from mutmut.workers.isolation import get_mutant_runner

from .choice import functions_to_try
from .trials import Trials


def sweep(patterns: Sequence[str], again: bool) -> int:
    """Try the mutants of these patterns that have no verdict, or anew those that live.

    Returns:
        pytest's exit status, not 0 where tests cannot be collected.
    """
    _prepare()
    trials = Trials(list(functions_to_try(patterns, again)))
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
