"""Two tokenizer processes and a short queue: each request is answered as by a single process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import Ask, ask_for, body_of, post
from .fleet import Fleet

pytestmark = pytest.mark.soak
OPTIONS = {"method": "quest", "budget": 256}
ROUNDS = 8


@pytest.fixture
def server(fleet: Fleet) -> Iterator[ServerProcess]:
    """With room for four waiting requests."""
    yield fleet.get("two_tokenizers")
    fleet.stop("two_tokenizers")


@pytest.fixture
def asks() -> list[Ask]:
    """Eight questions over one document of 2k tokens."""
    document = chain_document(2000, num_questions=8, num_hops=8, seed=31)
    return [ask_for(document, question, OPTIONS) for question in document.questions]


def test_good_and_bad_requests_over_a_full_queue(server: ServerProcess, asks: list[Ask]) -> None:
    """Right answers with a report, or SGLang's 503; a 400 for each bad one, whatever process."""
    url = f"{server.url}/generate"
    good = [body_of(ask) for ask in asks] * ROUNDS
    bad: list[dict[str, Any]] = [
        {**good[0], "sampling_params": {"custom_params": {"sparsekv": {"budget": -1}}}},
        {**good[0], "sparsekv": OPTIONS},
        {"input_ids": [10**6], "sampling_params": {"max_new_tokens": 1}},
    ]
    bodies = [body for i, one in enumerate(good) for body in (one, bad[i % len(bad)])]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda body: post(url, body), bodies))
    assert {status for status, _ in answers[1::2]} == {400}
    for (status, answer), ask in zip(answers[::2], asks * ROUNDS, strict=True):
        if status == 200:
            assert answer["text"] == ask.expected, answer
            assert answer["meta_info"]["sparsekv"]["method"] == "quest"
        else:
            assert status == 503, answer
    assert {200, 503} == {status for status, _ in answers[::2]}
    assert post(url, good[0])[0] == 200
