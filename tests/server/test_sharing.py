"""What requests offer each other over HTTP: a `full` answer beside sparse ones, and namespaces.

Prompts are random tokens: every later key then depends on what was read, down to the last bits.
Each history has an `extra_key` of its own: it begins on an empty cache and meets its own requests
alone.
"""

import random
from typing import Any

import pytest

from sgl_sparsekv.tooling.servers import ServerProcess

from .client import metric, post
from .fleet import VIEWS

FULL = {"method": "full"}
SPARSE = [
    {"method": "streaming", "budget": 128},
    {"method": "quest", "budget": 128},
    {"method": "clusterkv", "budget": 128},
]
NARROWED = [{"method": method, "budget": 128, "renew_every": 24} for method in VIEWS]
ALONE = {"share_generated": False}
ANSWER = 70
"""Tokens that a sparse turn generates: more than a page."""


def words(count: int, seed: int) -> list[int]:
    """Random tokens."""
    rng = random.Random(seed)
    return [rng.randrange(10, 1000) for _ in range(count)]


def ask(
    server: ServerProcess, ids: list[int], tokens: int, options: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Greedy answer with the logprobs of 16 candidates per token."""
    sampling = {
        "temperature": 0,
        "max_new_tokens": tokens,
        "ignore_eos": True,
        "custom_params": {"sparsekv": options},
    }
    body = {"input_ids": ids, "return_logprob": True, "top_logprobs_num": 16, **more}
    status, answer = post(f"{server.url}/generate", {**body, "sampling_params": sampling})
    assert status == 200, answer
    return answer


def bits(answer: dict[str, Any]) -> tuple[Any, ...]:
    """Everything that must be the same: tokens, their logprobs, those of other candidates."""
    info = answer["meta_info"]
    return answer["output_ids"], info["output_token_logprobs"], info["output_top_logprobs"]


def conversation(
    server: ServerProcess, key: str, seed: int, first: dict[str, Any], answers: list[list[int]]
) -> list[dict[str, Any]]:
    """Three turns of chat and a `full` reader behind each of the first two, twice.

    Args:
        server: asked.
        key: of the history.
        seed: of the prompt.
        first: options of the turns that write.
        answers: what the first two turns answered in another history; if empty, they are filled in.
            Then this history's turns only prefill, so that it has the same prompts and no answer.
    """
    text, seen = words(900, seed), []
    given = list(answers)
    for turn in range(2):
        wrote = ask(server, text, 1 if given else ANSWER, first, extra_key=key)
        if not given:
            answers.append(wrote["output_ids"])
        text = [*text, *answers[turn], *words(5, seed + turn + 1)]
        seen += [ask(server, text, 12, FULL, extra_key=key) for _ in ("cold", "warm")]
    return seen


@pytest.mark.parametrize(
    "options",
    [*SPARSE, NARROWED[0], *(pytest.param(one, marks=pytest.mark.soak) for one in NARROWED[1:])],
    ids=lambda options: str(options["method"]),
)
def test_a_full_answer_is_bit_equal_to_one_that_never_saw_a_sparse_request(
    ours: ServerProcess, options: dict[str, Any]
) -> None:
    """Two sparse turns that do not share; with sharing the same history gives other bits."""
    name, answers = str(options["method"]), list[list[int]]()
    beside = conversation(ours, f"alone-{name}", 1, options | ALONE, answers)
    clean = conversation(ours, f"clean-{name}", 1, FULL, answers)
    assert [bits(a) for a in beside] == [bits(a) for a in clean]
    hits = [[a["meta_info"]["cached_tokens"] for a in answers] for answers in (beside, clean)]
    assert hits[0] == hits[1] and hits[0][0] == 896
    shared: list[list[int]] = []
    mixed = conversation(ours, f"shared-{name}", 1, options, shared)
    assert shared[0] == answers[0], "what others may read changes nothing for the writer"
    assert bits(mixed[0]) != bits(clean[0]), "the prompt must tell whose keys were read"


def test_what_was_taken_from_sparser_requests_is_told_and_counted(ours: ServerProcess) -> None:
    """970 tokens, K of 969: the 15th page holds 60 generated tokens, behind 900 of prompt."""
    writer = SPARSE[0]
    for sharing, told in ((writer, 60), (writer | ALONE, 0), (FULL, 0)):
        key = f"counted-{sharing}"
        answer = ask(ours, words(900, 7), ANSWER, sharing, extra_key=key)["output_ids"]
        text, before = [*words(900, 7), *answer, 5], metric(ours.url, "tokens_from_sparser_total")
        reader = ask(ours, text, 2, FULL, extra_key=key)["meta_info"]["sparsekv"]
        assert reader["tokens_from_sparser"] == told
        assert metric(ours.url, "tokens_from_sparser_total") - before == told
        assert reader["share_generated"] is True
        same = ask(ours, text, 2, writer, extra_key=key)["meta_info"]["sparsekv"]
        assert same["tokens_from_sparser"] == 0, "this one would have read as little"


@pytest.mark.parametrize("options", [FULL, {"method": "quest", "budget": 1.0}], ids=str)
def test_an_answer_that_read_everything_is_offered(
    ours: ServerProcess, options: dict[str, Any]
) -> None:
    """There is nothing to keep back: the next turn finds the whole pages of the answer."""
    key, text = f"whole-{options}", words(900, 9)
    text += ask(ours, text, ANSWER, options | ALONE, extra_key=key)["output_ids"]
    assert ask(ours, [*text, 5], 1, FULL, extra_key=key)["meta_info"]["cached_tokens"] == 960


def test_a_session_hands_its_next_turn_what_is_offered(ours: ServerProcess) -> None:
    """A streaming session bypasses the tree; its `full` turn is bit-equal likewise."""
    prompt, writer, seen, answer = words(900, 11), SPARSE[0], {}, list[int]()
    for name, options in (("alone", writer | ALONE), ("shared", writer), ("clean", FULL)):
        session = {"capacity_of_str_len": 100_000, "streaming": True, "session_id": name}
        assert post(f"{ours.url}/open_session", session)[0] == 200
        here: dict[str, Any] = {"session_params": {"id": name}, "extra_key": f"session-{name}"}
        tokens = 1 if name == "clean" else ANSWER
        wrote = ask(ours, prompt, tokens, options, **here)["output_ids"]
        answer = answer or wrote
        rest = [*answer[1:], 5, 6] if name == "clean" else [5, 6]
        seen[name] = ask(ours, rest, 12, FULL, **here)
        assert seen[name]["meta_info"]["prompt_tokens"] == 900 + ANSWER + 2
        assert post(f"{ours.url}/close_session", {"session_id": name})[0] == 200
    hits = {name: turn["meta_info"]["cached_tokens"] for name, turn in seen.items()}
    assert hits == {"alone": 900, "shared": 900 + ANSWER - 1, "clean": 900}
    assert bits(seen["alone"]) == bits(seen["clean"]) != bits(seen["shared"])


@pytest.mark.parametrize("name", ["extra_key", "cache_salt"])
def test_namespaces_share_no_page_and_no_record(ours: ServerProcess, name: str) -> None:
    """One prompt under two keys: the second is as cold as the first, and answers alike."""
    prompt = words(2100, 13)
    for options in ({"method": "quest", "budget": 256}, {"method": "clusterkv", "budget": 256}):
        shared = metric(ours.url, "units_shared_total")
        keys = [f"{name}-{key}-{options['method']}" for key in "ab"]
        first, second = (ask(ours, prompt, 24, options, **{name: key}) for key in keys)
        assert bits(first) == bits(second)
        assert second["meta_info"]["cached_tokens"] == 0
        assert metric(ours.url, "units_shared_total") == shared
        again = ask(ours, prompt, 24, options, **{name: keys[0]})
        assert again["meta_info"]["cached_tokens"] == 2048
    assert metric(ours.url, "stale_units_total") == 0
