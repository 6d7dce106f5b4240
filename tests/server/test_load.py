"""A tight pool under load: forced retraction, eviction, disconnects and aborts."""

import random
import threading
import time

from helpers.soak import Size

from sgl_sparsekv.backend.cpu_defaults import METHOD
from sgl_sparsekv.models.documents import Document, chain_document

from .client import (
    Ask,
    ask_for,
    assert_whole,
    generate_all,
    get,
    metric,
    post,
    wrong_answers,
)
from .fleet import Fleet

METHODS = [
    {"method": "full"},
    {"method": "quest", "budget": 256},
    {"method": "mean_std", "budget": 256},
    {"method": "oracle", "budget": 192, "telemetry": True},
    {"method": "quest", "budget": 0.75},
    {"method": "quest", "budget": 512, "dense_layers": 2},
    None,
]
INEXACT = [
    {"method": "streaming"},
    {"method": "snapkv", "budget": 192, "renew_every": 8},
    {"method": "kvcompress", "budget": 192, "renew_every": 0},
]
"""What is left out is asked for: their answers are not judged."""


def mixed_requests(
    count: int, shared: Document, rng: random.Random, disconnects: float
) -> list[Ask]:
    """Half on a shared prefix, half on documents of their own."""
    asks = []
    for i in range(count):
        own = rng.random() < 0.5
        document = chain_document(rng.randrange(300, 1500), 1, 8, seed=i) if own else shared
        options = rng.choice([*METHODS, *INEXACT])
        ask = ask_for(document, rng.choice(document.questions), options)
        if options in INEXACT:
            ask = Ask(ask.prompt, None, ask.tokens, options)
        if rng.random() < disconnects:
            ask = Ask(ask.prompt, None, ask.tokens, options, hang_up_after=rng.randrange(6))
        asks.append(ask)
    return asks


def test_mixed_requests_are_all_right(fleet: Fleet, size: Size) -> None:
    """R9: 80 (1,000); a fifth of the clients hang up; nothing is wrong, lost or leaked."""
    server = fleet.get("tight")
    fleet.start("python_tree")
    rng, start = random.Random(9), time.monotonic()
    shared = chain_document(1800, num_questions=64, num_hops=8, seed=4)
    asks = mixed_requests(size(80, 1000), shared, rng, disconnects=0.2)
    answers = generate_all(server.url, asks)
    judged = [a for a in answers if a is not None]
    retractions = sum(a["meta_info"]["num_retractions"] for a in judged if a["status"] == 200)
    print(
        f"R9: {len(asks)} requests in {time.monotonic() - start:.0f} s, "
        f"{len(answers) - len(judged)} hung up, {retractions} retractions, "
        f"{metric(server.url, 'checked_units_total'):.0f} units checked"
    )
    assert wrong_answers(asks, answers) == []
    assert retractions > 0 and metric(server.url, "checked_units_total") > 0
    assert_whole(server.url)


def test_retracted_requests_give_the_tokens_of_an_easy_run(fleet: Fleet, size: Size) -> None:
    """R11: 24 (60) requests, at least 10 (25) retractions, the same tokens as without any."""
    server, easy = fleet.get("tight"), fleet.get("ours")
    documents = [chain_document(700, 1, 16, seed=1000 + i) for i in range(size(24, 60))]
    options = {"method": "quest", "budget": 256}
    asks = [ask_for(d, d.questions[0], options) for d in documents]
    answers = generate_all(server.url, asks)
    retractions = sum(a["meta_info"]["num_retractions"] for a in answers if a)
    print(f"R11: {retractions} retractions in {len(asks)} requests")
    assert retractions >= size(10, 25)
    assert wrong_answers(asks, answers) == []
    calm = generate_all(easy.url, asks)
    assert [a["output_ids"] for a in answers if a] == [a["output_ids"] for a in calm if a]


def test_prompts_one_token_longer_than_whole_chunks_ride_with_decodes(fleet: Fleet) -> None:
    """Mixed batches: a last chunk of one token is prefill, the others' tokens are not disturbed."""
    server, suffix = fleet.get("python_tree"), 6
    lengths = [512 * chunks + 1 - suffix for chunks in (1, 2, 3)]
    documents = [chain_document(n, num_questions=1, num_hops=8, seed=n) for n in lengths]
    long = chain_document(600, num_questions=4, num_hops=28, seed=12)
    late = [ask_for(d, d.questions[0], METHODS[1]) for d in documents]
    early = [ask_for(long, question, METHODS[1]) for question in long.questions]
    asks = [*early, *late]
    answers = generate_all(server.url, asks, concurrency=len(asks))
    assert wrong_answers(asks, answers) == []
    prompts = [answer["meta_info"]["prompt_tokens"] for answer in answers[4:] if answer]
    assert [tokens % 512 for tokens in prompts] == [1, 1, 1]


def test_aborts_at_any_time_leave_the_server_whole(fleet: Fleet) -> None:
    """R10: 200 aborts, by id, by disconnect and of everything; the next 50 answers are exact."""
    server, rng = fleet.get("tight"), random.Random(10)
    shared = chain_document(1200, num_questions=32, num_hops=8, seed=6)
    ended = 0
    for round_ in range(5):
        asks = []
        for i in range(40):
            options = rng.choice([*METHODS[:4], *INEXACT])
            ask = ask_for(shared, rng.choice(shared.questions), options)
            hang_up = rng.randrange(4) if i % 2 else None
            asks.append(Ask(ask.prompt, None, 64, ask.options, hang_up, f"abort-{round_}-{i}"))
        storm = threading.Thread(target=_abort, args=(server.url, asks, rng.random() * 0.5))
        storm.start()
        answers = generate_all(server.url, asks, concurrency=40)
        storm.join()
        ended += len(answers)
        assert all(a is None or a["status"] == 200 for a in answers)
    print(f"R10: {ended} requests aborted or hung up")
    assert ended == 200
    asks = [ask_for(shared, q, METHODS[1]) for q in shared.questions[:25] * 2]
    assert wrong_answers(asks, generate_all(server.url, asks)) == []
    assert_whole(server.url)


def _abort(url: str, asks: list[Ask], delay: float) -> None:
    time.sleep(0.05 + delay)
    for ask in asks[::2][:10]:
        post(f"{url}/abort_request", {"rid": ask.rid})
    time.sleep(0.3)
    post(f"{url}/abort_request", {"rid": "", "abort_all": True})


def test_metrics_and_state_are_told(fleet: Fleet) -> None:
    """What a person who runs it would look for."""
    server = fleet.get("tight")
    state = get(f"{server.url}/server_info")["internal_states"][0]["sparsekv"]
    assert state["options"]["method"] == METHOD
    assert metric(server.url, "metadata_bytes") > 0
    assert metric(server.url, "tokens_attended_total") < metric(
        server.url, "tokens_in_context_total"
    )
