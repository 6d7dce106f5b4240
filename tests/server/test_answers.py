"""Answers of a running server: exact at every length, whatever the method, batch or history."""

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from helpers.soak import Size

from sgl_sparsekv.models.documents import Document, chain_document
from sgl_sparsekv.serving.subscribe import TraceCollector
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import Ask, ask_for, generate, generate_all, metric, wrong_answers
from .fleet import Fleet

FULL = {"method": "full"}
SPARSE = [
    {"method": "quest", "budget": 256},
    {"method": "mean_std", "budget": 256},
    {"method": "oracle", "budget": 256},
    {"method": "quest", "budget": 0.2},
    {"method": "quest", "budget": 512, "dense_layers": 2},
]


@pytest.mark.parametrize("length", [512, 2048, 8192, pytest.param(32768, marks=pytest.mark.soak)])
def test_every_method_walks_sixteen_hops(ours: ServerProcess, length: int) -> None:
    """Each hop needs another page; streaming sees none of them."""
    document = chain_document(length, num_questions=2, num_hops=16, seed=length)
    # A fifth of 512 tokens is sinks and window alone.
    options = [o for o in (FULL, *SPARSE) if length > 512 or o.get("budget") != 0.2]
    asks = [ask_for(document, q, o) for q in document.questions for o in options]
    answers = generate_all(ours.url, asks, concurrency=4)
    assert wrong_answers(asks, answers) == []
    if length > 512:
        blind = generate(
            ours.url, ask_for(document, document.questions[0], {"method": "streaming"})
        )
        hops = blind["text"].split()
        right = sum(a == b for a, b in zip(hops, document.questions[0].answer_tokens, strict=False))
        assert right <= 1, "sinks and window alone must not find the pages"


def test_reading_everything_gives_the_tokens_of_torch_native(
    ours: ServerProcess, fleet: Fleet, size: Size
) -> None:
    """R6: 100 prompts, 500 in soak; budget >= context by `full`, by tokens and by share."""
    native, rng = fleet.get("native"), random.Random(6)
    lengths = [rng.randrange(280, 520) for _ in range(size(9, 49))] + [2048]
    documents = [chain_document(n, num_questions=10, num_hops=8, seed=n) for n in lengths]
    pairs = [(d, q) for d in documents for q in d.questions]
    stock = generate_all(native.url, [ask_for(d, q) for d, q in pairs], concurrency=8)
    everything = [FULL, {"method": "quest", "budget": 65536}, {"method": "quest", "budget": 1.0}]
    asks = [ask_for(d, q, everything[i % 3]) for i, (d, q) in enumerate(pairs)]
    mine = generate_all(ours.url, asks, concurrency=8)
    assert len(pairs) == size(100, 500)
    assert [a["output_ids"] for a in mine if a] == [a["output_ids"] for a in stock if a]


def test_layers_are_ours_where_the_backend_is(ours: ServerProcess, fleet: Fleet) -> None:
    """The tokens above and the logprobs below are those of our matrices against torch's."""
    told = "matrices are read by our kernels"
    assert told in ours.log.read_text()
    assert told not in fleet.get("native").log.read_text()


def test_logprobs_stay_within_the_rounding_of_bf16(ours: ServerProcess, fleet: Fleet) -> None:
    """Random prompts: every candidate token's logprob, against torch_native."""
    native, rng = fleet.get("native"), random.Random(0)
    worst = 0.0
    for length in (40, 700, 3000):
        ids = [rng.randrange(10, 1000) for _ in range(length)]
        body = {
            "input_ids": ids,
            "return_logprob": True,
            "top_logprobs_num": 16,
            "sampling_params": {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True},
        }
        ask = Ask("", None, 4)
        sampled = {"custom_params": {"sparsekv": FULL}, **body["sampling_params"]}  # type: ignore[dict-item]
        mine = generate(ours.url, ask, **{**body, "sampling_params": sampled, "text": None})
        stock = generate(native.url, ask, **{**body, "text": None})
        worst = max(worst, _worst_gap(mine, stock))
    # Logits of this model reach 2**5 and bf16 keeps 8 bits of them.
    print(f"worst logprob gap to torch_native: {worst:.4f}")
    assert worst <= 2**5 * 2**-8 * 2


def _worst_gap(mine: dict[str, Any], stock: dict[str, Any]) -> float:
    key = "output_top_logprobs"
    gap = 0.0
    for ours, theirs in zip(mine["meta_info"][key], stock["meta_info"][key], strict=True):
        known = {token: value for value, token, _ in theirs}
        gaps = [abs(value - known[token]) for value, token, _ in ours if token in known]
        assert len(gaps) >= 8
        gap = max(gap, *gaps)
    return gap


def test_a_request_reads_the_same_alone_in_a_batch_cold_and_warm(
    ours: ServerProcess, shared_document: Document, size: Size
) -> None:
    """15 trials (51) of shuffled batches of 2 to 16; the first is cold, the rest hit the prefix."""
    rng, trials = random.Random(1), 0
    for question in shared_document.questions[: size(5, 17)]:
        for options in SPARSE[:3]:
            trials += 1
            alone = generate(ours.url, ask_for(shared_document, question, options))
            others = rng.sample(shared_document.questions, rng.randrange(1, 16))
            asks = [ask_for(shared_document, q, rng.choice([FULL, *SPARSE])) for q in others]
            place = rng.randrange(len(asks) + 1)
            asks.insert(place, ask_for(shared_document, question, options))
            together = generate_all(ours.url, asks)[place]
            assert together is not None and together["output_ids"] == alone["output_ids"]
            assert alone["text"].strip() == question.answer
    print(f"{trials} trials, 0 differences")


Read = dict[tuple[int, int, int], list[list[int]]]
"""{(length, layer, rank): units of each KV head}."""


def selections(fleet: Fleet, server: ServerProcess, ask: Ask) -> Read:
    """What each step and layer read for a request."""
    (read,) = all_selections(fleet, server, [ask])
    return read


def all_selections(
    fleet: Fleet, server: ServerProcess, asks: Sequence[Ask], ranks: int = 1, at: int = 0
) -> list[Read]:
    """What each step, layer and rank read for requests, one after the other."""
    first = fleet.trace_port + at
    endpoints = [f"tcp://127.0.0.1:{first + rank}" for rank in range(ranks)]
    read: dict[str | None, Read] = {ask.rid: {} for ask in asks}
    with TraceCollector(endpoints) as collector:
        time.sleep(1.0)  # a ZMQ publisher sends nothing to who has not joined yet
        for ask in asks:
            generate(server.url, ask)
        while (record := collector.receive(1.0)) is not None:
            if record.rid in read:
                read[record.rid][record.length, record.layer, record.tp_rank] = record.units
    return list(read.values())


@pytest.mark.parametrize(
    "options",
    [
        {"method": "quest", "budget": 256},
        {"method": "quest", "budget": 512, "coverage": 0.9, "budget_split": "heads"},
    ],
    ids=["fixed", "adaptive"],
)
def test_the_same_units_are_read_cold_and_on_a_prefix_hit(
    fleet: Fleet, ours: ServerProcess, options: dict[str, Any]
) -> None:
    """Also after the tree was flushed and the pages were handed out anew; all of it is counted."""
    from .client import post

    document = chain_document(3000, num_questions=1, num_hops=8, seed=77 + len(options))
    question, seen = document.questions[0], []
    before = metric(ours.url, "tokens_attended_total")
    for name in ("cold", "warm", "flushed"):
        if name == "flushed":
            assert post(f"{ours.url}/flush_cache", {})[0] == 200
        ask = ask_for(document, question, options, rid=f"trace-{name}")
        seen.append(selections(fleet, ours, ask))
    assert len(seen[0]) >= 7 * 3
    assert seen[0] == seen[1] == seen[2]
    lists = [(length, len(head)) for (length, _, _), heads in seen[0].items() for head in heads]
    tokens = sum((count - 1) * 16 + (length - 1) % 16 + 1 for length, count in lists)
    heads = len(next(iter(seen[0].values())))
    assert metric(ours.url, "tokens_attended_total") - before == 3 * tokens / heads
    assert (len({count for _, count in lists}) > 2) == ("coverage" in options)


def test_a_prefix_hit_rebuilds_no_metadata(ours: ServerProcess) -> None:
    """Units summarised for the second question are new ones only; the shared ones are counted."""
    document = chain_document(4096, num_questions=2, num_hops=8, seed=5)
    first, second = (
        ask_for(document, q, {"method": "quest", "budget": 256}) for q in document.questions
    )
    before = metric(ours.url, "units_summarised_total")
    generate(ours.url, first)
    built = metric(ours.url, "units_summarised_total")
    shared = metric(ours.url, "units_shared_total")
    answer = generate(ours.url, second)
    again = metric(ours.url, "units_summarised_total")
    info = answer["meta_info"]
    total = info["prompt_tokens"] + info["completion_tokens"]
    new_tokens = total - info["cached_tokens"]
    assert info["cached_tokens"] >= 4096 - 64
    assert built - before >= 4096 // 16
    assert again - built <= new_tokens // 16 + 1
    assert metric(ours.url, "units_shared_total") - shared >= info["cached_tokens"] // 16


def test_the_response_says_what_was_applied_and_read(ours: ServerProcess) -> None:
    """Options, and the share of the cache that decode read."""
    document = chain_document(8192, num_questions=1, num_hops=8, seed=9)
    ask = ask_for(document, document.questions[0], {"method": "quest", "budget": 256})
    report = generate(ours.url, ask)["meta_info"]["sparsekv"]
    assert report["method"] == "quest" and report["budget"] == 256 and report["rejected"] is None
    assert report["decode_steps"] in (7, 8)
    share = report["tokens_attended"] / report["tokens_in_context"]
    assert 240 / 8200 <= share <= 256 / 8192
    full = generate(ours.url, ask_for(document, document.questions[0], FULL))["meta_info"]
    assert full["sparsekv"]["tokens_attended"] == full["sparsekv"]["tokens_in_context"]


def test_narrowed_readers_do_not_change_what_others_get(ours: ServerProcess) -> None:
    """Logits of a full request are bit for bit the same before and after sparse neighbours."""
    document = chain_document(2500, num_questions=8, num_hops=8, seed=13)
    ask = ask_for(document, document.questions[0], FULL)
    more = {"return_logprob": True, "top_logprobs_num": 4}
    generate(ours.url, ask)  # in the tree from here on
    before = generate(ours.url, ask, **more)["meta_info"]["output_top_logprobs"]
    asks = [ask_for(document, q, {"method": "streaming"}) for q in document.questions]
    generate_all(ours.url, asks)
    after = generate(ours.url, ask, **more)["meta_info"]["output_top_logprobs"]
    assert after == before


def test_a_selection_can_serve_several_steps(ours: ServerProcess) -> None:
    """Every new token needs a new page here, so reuse must miss: it is really reused."""
    document = chain_document(4096, num_questions=1, num_hops=12, seed=21)
    ask = ask_for(
        document, document.questions[0], {"method": "quest", "budget": 256, "reselect_every": 4}
    )
    answer = generate(ours.url, ask)["text"].split()
    expected = document.questions[0].answer_tokens
    assert answer[:2] == list(expected[:2]) and answer != list(expected)
