"""One fleet of servers for all server tests, started while other tests still run."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from sgl_sparsekv.models.documents import Document, chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .fleet import Fleet

_fleet: list[Fleet] = []


def _interrupt(*_: object) -> NoReturn:
    """A termination ends the session as Ctrl-C does: with its servers."""
    raise KeyboardInterrupt


def pytest_configure() -> None:
    """Whoever ends these tests ends the servers they started."""
    signal.signal(signal.SIGTERM, _interrupt)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that most tests use as soon as it is known that they are needed."""
    needed = [i for i in session.items if "fleet" in getattr(i, "fixturenames", ())]
    if needed and not session.config.option.collectonly and not _fleet:
        from sgl_sparsekv.models.analytic import save_analytic

        folder = Path(session.config._tmp_path_factory.mktemp("servers"))  # type: ignore[attr-defined]
        save_analytic(folder / "model")
        _fleet.append(Fleet(folder / "model", folder))
        _fleet[0].start("ours")


def pytest_sessionfinish() -> None:
    """End whatever still runs."""
    for fleet in _fleet:
        fleet.stop_all()


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """The servers by name."""
    yield _fleet[0]


@pytest.fixture
def ours(fleet: Fleet) -> ServerProcess:
    """Ours, with room for 64k tokens, strict checks and the metadata checker on."""
    return fleet.get("ours")


@pytest.fixture
def server(ours: ServerProcess) -> ServerProcess:
    """The server that request tests talk to."""
    return ours


@pytest.fixture(scope="session")
def shared_document() -> Document:
    """A document of 4k tokens that many questions share."""
    return chain_document(4096, num_questions=32, num_hops=8, seed=1)
