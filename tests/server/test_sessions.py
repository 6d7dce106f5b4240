"""Streaming sessions: turns that go on in the middle of a page, behind a step that ran too far."""

from typing import Any

from conftest import Size

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import metric, post
from .fleet import Fleet

QUEST = {"method": "quest", "budget": 256}


def turn(server: ServerProcess, text: str, session: Any, stop: str) -> dict[str, Any]:
    """What follows the session's text and `text`, up to `stop`; outside a session: `text`."""
    sampling = {"temperature": 0, "max_new_tokens": 8, "stop": [stop]}
    body = {"text": text, "sampling_params": {**sampling, "custom_params": {"sparsekv": QUEST}}}
    if session is not None:
        body["session_params"] = {"id": session}
    status, answer = post(f"{server.url}/generate", body)
    assert status == 200, answer
    return dict(answer)


def test_a_session_answers_as_one_long_prompt_does(fleet: Fleet, size: Size) -> None:
    """Turns of many lengths, each ended by a stop string and retracted on the way."""
    server, turns = fleet.get("tight"), size(5, 80)
    document = chain_document(800, num_questions=turns, num_hops=8, seed=7)
    status, session = post(
        f"{server.url}/open_session", {"capacity_of_str_len": 100_000, "streaming": True}
    )
    assert status == 200, session
    before, ends = document.text, set()
    for number, question in enumerate(document.questions):
        words = question.answer_tokens
        new = " ".join(["the"] * (number % 16) + [question.suffix])
        text = f"{before} {new}" if number == 0 else f" {new}"
        answer = turn(server, text, session, stop=words[4])
        assert answer["text"].split() == list(words[:4]), number
        used = answer["meta_info"]
        ends.add((used["prompt_tokens"] + used["completion_tokens"]) % 64)
        before = f"{before} {new}{answer['text']}"
        if number % 4 == 0:
            alone = turn(server, f"{document.text} {question.suffix}", None, stop=words[4])
            assert alone["text"] == answer["text"]
    post(f"{server.url}/close_session", {"session_id": session})
    assert len(ends) > turns // 3, "turns must end at many places of a page"
    assert metric(server.url, "stale_units_total") == 0
