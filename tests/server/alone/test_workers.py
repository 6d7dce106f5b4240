"""Two tokenizer processes and a queue that is full: everyone is answered, by the same rules."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sgl_sparsekv.tooling.servers import ServerProcess, ServerSpec
from tests.start.tiny import write_llama

from ..client import assert_whole, post
from ..fleet import COMMON, ONE_THREAD

# Each worker imports SGLang anew.
pytestmark = [pytest.mark.server, pytest.mark.soak]
QUEUED = 4
CLIENTS = 64
FLAGS = (
    *("--attention-backend", "sparsekv", "--sparsekv-budget", "128", "--dtype", "float32"),
    *("--tokenizer-worker-num", "2", "--max-queued-requests", str(QUEUED)),
    *("--max-running-requests", "2", "--max-total-tokens", "4096"),
)
LISTENS = "Application startup complete."
BAD_BUDGET = "sparsekv.budget must be"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Ours, of a tiny model, when both workers listen: the first one answers for it alone."""
    folder = tmp_path_factory.mktemp("workers")
    model = ("--model-path", str(write_llama(folder / "model")))
    running = ServerProcess(ServerSpec("workers", (*model, *COMMON, *FLAGS), ONE_THREAD), folder)
    while not running.ready() or running.log.read_text().count(LISTENS) < 2:
        time.sleep(0.5)
    yield running
    running.stop()


def body(number: int, **options: Any) -> dict[str, Any]:
    """A prompt of its own, longer than the budget."""
    ids = [2 + (7 * i * i + number) % 300 for i in range(300)]
    sampling = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
    return {
        "input_ids": ids,
        "sampling_params": {**sampling, "custom_params": {"sparsekv": options}},
    }


def test_whoever_asks_two_workers_with_a_full_queue_is_answered(server: ServerProcess) -> None:
    """At once, a third of them wrongly: 400 for these, 503 in SGLang's words for the surplus."""
    bodies = [body(i, **({"budget": -1} if i % 3 == 0 else {})) for i in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda each: post(f"{server.url}/generate", each, 120), bodies))
    wrong, right = answers[::3], [answers[i] for i in range(CLIENTS) if i % 3]
    assert all(status == 400 and BAD_BUDGET in str(told) for status, told in wrong), wrong
    statuses = Counter(status for status, _ in right)
    assert set(statuses) == {200, 503} and statuses[200] > QUEUED, statuses
    for status, told in right:
        if status == 503:
            assert "The request queue is full." in str(told)
        else:
            report = told["meta_info"]["sparsekv"]
            assert report["tokens_attended"] < report["tokens_in_context"]


def test_behind_a_full_queue_the_server_is_whole(server: ServerProcess) -> None:
    """Nothing is kept for those that were sent away; one request is as good as before."""
    status, told = post(f"{server.url}/generate", body(1))
    assert status == 200 and len(told["output_ids"]) == 32
    assert_whole(server.url)
