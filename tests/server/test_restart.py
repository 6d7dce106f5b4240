"""Ends without warning, and the other ways to run: both tree cores, no tree, mixed chunks."""

import os
import signal
import threading
import time
from typing import Any

import pytest
from helpers.soak import Size

from sgl_sparsekv.models.documents import Document, chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import Ask, ask_for, assert_whole, generate_all, wrong_answers
from .fleet import Fleet

QUEST = {"method": "quest", "budget": 256}


def fifty(seed: int) -> list[Ask]:
    """Fifty requests with known answers, some on shared prefixes."""
    documents = [chain_document(400 + 100 * i, 10, 8, seed=seed + i) for i in range(5)]
    return [ask_for(d, q, QUEST) for d in documents for q in d.questions]


def kill_in_mid_decode(server: ServerProcess, document: Document) -> list[Any]:
    """SIGKILL the server while it decodes; what its clients got."""
    answers: list[Any] = []
    asks = [Ask(document.prompt(q), None, 512, QUEST) for q in document.questions]

    def ask() -> None:
        try:
            answers.extend(generate_all(server.url, asks))
        except Exception as error:  # the clients of a killed server see whatever they see
            answers.append(error)

    client = threading.Thread(target=ask)
    client.start()
    time.sleep(1.0)
    os.killpg(server.pid, signal.SIGKILL)
    client.join(60)
    assert not client.is_alive()
    return answers


@pytest.mark.parametrize(
    ("victim", "successor"),
    [
        ("tight", "python_tree"),
        pytest.param("python_tree", "no_radix", marks=pytest.mark.soak),
    ],
)
def test_after_kill_9_a_new_server_is_clean_and_exact(
    fleet: Fleet, victim: str, successor: str
) -> None:
    """R12, twice; the successor runs another tree core, page size and schedule each time."""
    fleet.start(successor)
    server = fleet.get(victim)
    answers = kill_in_mid_decode(server, chain_document(1000, 8, 8, seed=3))
    assert answers, "clients must be told"
    assert not any(isinstance(a, dict) and a.get("status") == 200 for a in answers)
    fleet.stop(victim)
    fresh = fleet.get(successor)
    asks = fifty(seed=40)
    assert wrong_answers(asks, generate_all(fresh.url, asks)) == []
    assert_whole(fresh.url)


def test_sigterm_ends_the_server(fleet: Fleet, size: Size) -> None:
    """The last one that was started above; it lets go of its port, too."""
    name = "no_radix" if size(0, 1) else "python_tree"
    server = fleet.get(name)
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    with pytest.raises(Exception, match="ended with exit code"):
        while time.monotonic() < deadline:
            server.check()
            time.sleep(0.2)
    fleet.stop(name)
