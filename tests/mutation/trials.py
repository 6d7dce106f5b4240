"""A pytest run that collects tests once and, for each mutant, runs those of its function in a fork.

Collecting takes half a minute (SGLang is imported), a unit test milliseconds; and a forked torch
waits for threads that only its parent has, so the parent has run no test.
"""

import gc
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from time import monotonic

import pytest
import torch
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.utils.file_utils import change_cwd

PASSED, FAILED, NO_TESTS, TIMEOUT = 0, 1, 33, 36
"""Exit codes as mutmut reads them."""
IMPORTED_LATE = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "torch._dynamo",
)
"""What tests and fixtures import as they run: once here, not once for each mutant."""
PATIENCE = 20
"""Seconds that a mutant has, and three times what its tests take without it."""


@dataclass(frozen=True)
class Function:
    """A function with mutants to try.

    Attributes:
        name: mutmut's.
        mutants: their names.
        tests: node ids of the tests that decide.
        data: verdicts of its file.
    """

    name: str
    mutants: tuple[str, ...]
    tests: tuple[str, ...]
    data: SourceFileMutationData


class Trials:
    """Takes the place of pytest's loop over its tests."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self.functions = functions
        self.root = Path.cwd()

    def pytest_report_teststatus(self) -> tuple[str, str, str]:
        """No letter for a test: a line for each function instead."""
        return "", "", ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants; a verdict is written as soon as it is there."""
        if session.testsfailed:
            raise session.Interrupted("tests cannot be collected")
        for module in IMPORTED_LATE:
            import_module(module)
        torch.set_num_threads(1)
        gc.freeze()
        items = {item.nodeid: item for item in session.items}
        for function in self.functions:
            self._try(function, session, [items[test] for test in function.tests])
        return True

    def _try(self, function: Function, session: pytest.Session, tests: list[pytest.Item]) -> None:
        begin = monotonic()
        if tests and in_fork("", session, tests, 10 * PATIENCE) != PASSED:
            print(f"{function.name}: its tests fail without a mutant", flush=True)
            return
        limit = PATIENCE + int(3 * (monotonic() - begin))
        codes = []
        for mutant in function.mutants:
            started = monotonic()
            codes.append(in_fork(mutant, session, tests, limit) if tests else NO_TESTS)
            function.data.exit_code_by_key[mutant] = codes[-1]
            function.data.durations_by_key[mutant] = monotonic() - started
            with change_cwd(self.root):
                function.data.save()
        lives = codes.count(PASSED) + codes.count(NO_TESTS)
        took = monotonic() - begin
        print(f"{function.name}: {lives} of {len(codes)} live, {took:.0f} s", flush=True)


def in_fork(mutant: str, session: pytest.Session, tests: list[pytest.Item], limit: int) -> int:
    """Run tests up to the first that fails, in a process of their own.

    Args:
        mutant: mutmut's name, or "" for the code as it is.
        session: pytest's, with everything collected.
        tests: in the order of their files.
        limit: seconds.

    Returns:
        Exit code for mutmut; a process that dies has failed.
    """
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            signal.alarm(limit)
            set_mutant_under_test(mutant)
            code = _first_failure(session, tests)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {PASSED: PASSED, -signal.SIGALRM: TIMEOUT}.get(code, FAILED)


def _first_failure(session: pytest.Session, tests: list[pytest.Item]) -> int:
    for test, following in zip_longest(tests, tests[1:]):
        test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        if session.testsfailed:
            return FAILED
    return PASSED
