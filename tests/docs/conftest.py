"""One reader of all pages."""

import signal
from collections.abc import Iterator
from typing import NoReturn

import pytest
from helpers.fresh import FreshEnvironment
from helpers.launcher import Launcher

from sgl_sparsekv.tooling.servers import free_port

from .reader import Reader
from .servers import METHOD_OF_ANOTHER
from .words import write_words


def _interrupt(*_: object) -> NoReturn:
    """A termination ends the session as Ctrl-C does: with its servers."""
    raise KeyboardInterrupt


def pytest_configure() -> None:
    """Whoever ends these tests ends the servers they started."""
    signal.signal(signal.SIGTERM, _interrupt)


@pytest.fixture(scope="session")
def launcher(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launcher | None]:
    """What serve lines are forked from; at full size all of them are typed."""
    if pytestconfig.getoption("soak"):
        yield None
        return
    environment = {"PYTHONPATH": str(METHOD_OF_ANOTHER), "OMP_NUM_THREADS": "1"}
    with Launcher(tmp_path_factory.mktemp("launcher"), environment) as found:
        yield found


@pytest.fixture(scope="session")
def reader(
    fresh: FreshEnvironment,
    launcher: Launcher | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Reader]:
    """Servers start when a page needs them."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "words").mkdir()
    words = write_words(folder / "words", f"tcp://127.0.0.1:{free_port()}")
    who = Reader(folder, words, fresh, launcher)
    try:
        yield who
    finally:
        who.stop()
