"""Views over HTTP: the same answer however a prompt came in, and what is told of it."""

from dataclasses import replace
from typing import Any

import pytest
from helpers.soak import Size

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.views.stretches import kept_in

from .client import (
    Ask,
    ask_for,
    assert_whole,
    body_of,
    generate,
    generate_all,
    post,
    wrong_answers,
)
from .fleet import VIEWS, Fleet
from .test_answers import selections
from .test_sharing import ask, words

BUDGET, EVERY = 192, 8


@pytest.mark.parametrize("method", VIEWS)
def test_a_view_is_the_same_cold_on_a_hit_in_chunks_and_after_retractions(
    fleet: Fleet, method: str
) -> None:
    """`tight` reads prompts in chunks of 512 and retracts whoever runs; its views are renewed."""
    options = {"method": method, "budget": BUDGET, "renew_every": EVERY, "share_generated": False}
    text, told = words(1100, 5), []
    for name in ("ours", "ours", "tight"):
        answer = ask(fleet.get(name), text, 3 * EVERY, options, extra_key=f"view-{method}")
        told.append((answer["output_ids"], answer["meta_info"]["sparsekv"]["tokens_attended"]))
    assert told[1] == told[0] and told[2] == told[0]


def test_the_last_tokens_of_a_prompt_are_read_again_on_a_hit(fleet: Fleet) -> None:
    """A window of 200 queries, and the rest of their page; other methods take all but a token."""
    server, text = fleet.get("ours"), words(1089, 6)
    cached = {}
    for method in ("full", "quest", "snapkv", "snapkv"):
        options = {"method": method, "budget": BUDGET, "observation_window": 200}
        cached[method] = ask(server, text, 2, options)["meta_info"]["cached_tokens"]
    assert cached == {"full": 0, "quest": 1088, "snapkv": (1089 - 200) // 64 * 64}


def test_what_a_view_reads_is_counted_and_measured(fleet: Fleet) -> None:
    """The budget, and one more with every token; its attention mass layer by layer."""
    asked = {"method": "snapkv", "budget": BUDGET, "renew_every": 0, "telemetry": True}
    answer = ask(fleet.get("ours"), words(1000, 8), 21, asked)["meta_info"]["sparsekv"]
    layers = answer["tokens_in_context"] // sum(range(1001, 1021))
    assert answer["tokens_attended"] == layers * sum(BUDGET + step for step in range(1, 21))
    view = answer["view"]
    assert view["made"] == 1000 and len(view["kept"]) == layers
    assert {kept for heads in view["kept"].values() for kept in heads} == {BUDGET}
    masses = answer["telemetry"]["attention_mass"]
    assert masses is not None and 0 < masses["mean"] < 1


def test_a_response_tells_which_tokens_each_head_kept(fleet: Fleet) -> None:
    """Those that the trace says were read; each answer of `n` by itself. Asking changes none."""
    server, document = fleet.get("ours"), chain_document(900, 1, num_hops=12, seed=10)
    asked = {"method": "kvcompress", "budget": BUDGET, "renew_every": EVERY}
    plain = ask_for(document, document.questions[0], asked)
    mapped = ask_for(document, document.questions[0], {**asked, "kept_map": True}, rid="kept-map")
    read = selections(fleet, server, mapped)
    other, answer = (generate(server.url, one) for one in (plain, mapped))
    assert answer["output_ids"] == other["output_ids"]
    assert other["meta_info"]["sparsekv"]["view"] is None
    view = answer["meta_info"]["sparsekv"]["view"]
    end = view["made"] + view["since"]
    assert view["since"] < EVERY and end == max(length for length, _, _ in read)
    assert {"0", "1", "2"} == view["map"].keys() == view["mass"].keys()
    for number, heads in view["map"].items():
        kept = [kept_in(head).tolist() for head in heads]
        assert [len(one) for one in kept] == view["kept"][number]
        since = list(range(view["made"], end))
        assert [one + since for one in kept] == read[end, int(number), 0]
        assert all(0 < share <= 1.000001 for share in view["mass"][number])
    body = body_of(replace(mapped, rid=None))
    body["sampling_params"] |= {"n": 2, "max_new_tokens": 2}
    status, answers = post(f"{server.url}/generate", body)
    assert status == 200, answers
    first, second = (one["meta_info"]["sparsekv"]["view"] for one in answers)
    assert first == second and first["map"]["0"]


def test_short_prompts_with_long_answers_stay_bounded(fleet: Fleet, size: Size) -> None:
    """Below the budget nothing is left out; from `renew_every` above it on a view is kept."""
    tokens = size(200, 1500)
    asked = {"method": "h2o", "budget": BUDGET, "renew_every": EVERY}
    answer = ask(fleet.get("ours"), words(100, 9), tokens, asked)["meta_info"]["sparsekv"]
    layers = answer["tokens_in_context"] // sum(range(101, 100 + tokens))
    most = sum(min(length, BUDGET + EVERY) for length in range(101, 100 + tokens))
    assert answer["tokens_attended"] <= layers * most
    assert answer["tokens_attended"] < answer["tokens_in_context"]


def test_rows_are_packed_where_memory_is_short_and_answers_stay_the_same(
    fleet: Fleet, size: Size
) -> None:
    """A pool of five prompts: views that are renewed and views that are not, some of one prefix."""
    server, easy, prompts = fleet.get("python_tree"), fleet.get("ours"), size(12, 100)
    shared, asks = chain_document(1500, prompts, 4, seed=3), []
    for i in range(prompts):
        document = chain_document(1500, prompts, 4, seed=100 + i) if i % 3 else shared
        options = {"method": VIEWS[i % len(VIEWS)], "budget": BUDGET, "share_generated": False}
        options |= {"renew_every": EVERY * (i % 2)}
        prompt = ask_for(document, document.questions[i], options).prompt
        asks.append(Ask(prompt, None, 5 * EVERY, options))
    answers = generate_all(server.url, asks, concurrency=prompts)
    calm = generate_all(easy.url, asks)
    freed = [a["meta_info"]["sparsekv"]["tokens_freed"] for a in answers if a]
    print(f"packed {sum(map(bool, freed))} of {prompts} rows, {sum(freed)} tokens")
    assert sum(map(bool, freed)) > prompts // 4
    assert [a["output_ids"] for a in answers if a] == [a["output_ids"] for a in calm if a]
    assert all(a["meta_info"]["sparsekv"]["tokens_freed"] == 0 for a in calm if a)
    assert_whole(server.url)


def test_views_of_many_requests_on_one_prefix(fleet: Fleet) -> None:
    """Every method and `full` at once, upon one document: the dense reader is right."""
    server, document = fleet.get("ours"), chain_document(2000, num_questions=6, num_hops=4, seed=2)
    options: list[dict[str, Any]] = [{"method": method, "budget": BUDGET} for method in VIEWS]
    asks = [
        ask_for(document, question, option)
        for question, option in zip(document.questions, [{"method": "full"}, *options], strict=True)
    ]
    answers = generate_all(server.url, asks, concurrency=6)
    assert not wrong_answers(asks[:1], answers[:1])
    for answer, option in zip(answers[1:], options, strict=True):
        assert answer is not None
        report = answer["meta_info"]["sparsekv"]
        assert report["method"] == option["method"] and report["rejected"] is None
        assert report["tokens_attended"] < 0.2 * report["tokens_in_context"]


def test_names_of_kv_compress_are_taken_in_their_place_and_refused_elsewhere(fleet: Fleet) -> None:
    url = fleet.get("ours").url
    theirs = {"max_cache_tokens": 128, "protected_window_size": 32, "compress_once": True}
    sampling = {"max_new_tokens": 4, "custom_params": {"sparsekv": theirs}}
    status, answer = post(
        f"{url}/generate", {"input_ids": words(500, 1), "sampling_params": sampling}
    )
    assert status == 200, answer
    told = answer["meta_info"]["sparsekv"]
    assert (told["method"], told["budget"], told["window"]) == ("kvcompress", 128, 32)
    assert told["renew_every"] == 0
    body = {"model": "default", "prompt": "a", "max_tokens": 2, "max_cache_tokens": 128}
    status, answer = post(f"{url}/v1/completions", body)
    assert status == 400 and "max_cache_tokens would be ignored here" in str(answer)
