"""A mutant's tests run in a fork up to the first that fails, its module's own before others."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mutmut.mutation.trampoline import get_mutant_under_test

from mutation.choice import BUDGET, LONGEST, unit_tests
from mutation.trials import FAILED, PASSED, TIMEOUT, in_fork

SESSION: Any = SimpleNamespace(testsfailed=0)


def case(work: Callable[[], Any]) -> Any:
    """A collected test that does this, and fails if it raises nothing but tells False."""

    def protocol(item: Any, nextitem: Any) -> None:
        SESSION.testsfailed += work() is False

    return SimpleNamespace(
        config=SimpleNamespace(hook=SimpleNamespace(pytest_runtest_protocol=protocol))
    )


def test_what_happens_in_a_fork_stays_there_and_ends_with_the_first_failure(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def tell() -> None:
        told.write_text(get_mutant_under_test())

    assert in_fork("x__mutmut_1", SESSION, [case(tell), case(lambda: None)], 30) == PASSED
    assert told.read_text() == "x__mutmut_1" and get_mutant_under_test() == ""
    told.unlink()
    assert in_fork("", SESSION, [case(lambda: False), case(tell)], 30) == FAILED
    assert not told.exists() and SESSION.testsfailed == 0


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: time.sleep(60), TIMEOUT),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), FAILED),
        (lambda: pytest.exit("enough"), FAILED),
        (lambda: os._exit(7), FAILED),
    ],
)
def test_a_mutant_that_hangs_or_takes_its_process_along_is_seen(work: Any, code: int) -> None:
    assert in_fork("", SESSION, [case(work)], 1) == code


def test_own_tests_decide_first_then_the_quickest_of_others_file_by_file() -> None:
    """Own ones however long they take; others up to a limit each and together."""
    seconds = {
        "t/test_pool.py::a": 9.0, "t/test_pool.py::b": 0.1,
        "t/test_other.py::slow": LONGEST + 0.1, "t/test_other.py::c": 0.2,
        "t/test_far.py::d": 0.1, "t/test_other.py::e": 0.01, "t/test_far.py::f": BUDGET,
        "t/test_never.py::g": 0.0,
    }  # fmt: skip
    reached = set(seconds) - {"t/test_never.py::g"}
    assert unit_tests("pool", reached, seconds) == (
        *("t/test_pool.py::b", "t/test_pool.py::a", "t/test_other.py::e", "t/test_other.py::c"),
        "t/test_far.py::d",
    )
    assert unit_tests("pool", set(), seconds) == ()
