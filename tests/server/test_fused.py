"""The GPU's backend in a real server: SGLang's scheduler and radix cache, kernels interpreted.

What only a GPU has is left out: graphs (`tests/backend/test_graphs.py`) and speed.
"""

from typing import Any

from helpers.soak import Size

from sgl_sparsekv.models.documents import chain_document

from .client import ask_for, generate_all, metric, wrong_answers
from .fleet import LEVELS, Fleet

FINER = ("clusterkv", "pqcache", "residual_pq", "shadowkv")
"""Methods that choose less than whole units."""
TOLD = (*FINER, *LEVELS, "quest_int8")
"""Methods that a request has to name."""


def check_telemetry(told: Any) -> None:
    """Of the request with quest that reads 0.3 of its context, and all of it in the first layer."""
    assert told["how"] == "sampled" and told["sampled_steps"] == 1 and told["sampled_layers"] == 2
    mass = told["attention_mass"]
    assert 0 < mass["least"] <= mass["mean"] <= 1 and mass["layers"].keys() == {"1", "2"}
    assert mass["layers"]["2"] > 0.9, "the layer that attends to a single page"
    assert told["select_ms"] is None and "behind the host's clock" in told["reason"]


def test_mixed_methods_over_a_shared_prefix(fleet: Fleet, size: Size) -> None:
    """Cold, then on prefix hits in one batch of all methods; metadata is checked as it goes.

    All select in every third step, but one that names another number, and two that may not: a
    share of the context is not within the server's budget, and a coverage is drawn for anew.
    """
    server = fleet.get("interpreted")
    document = chain_document(600, num_questions=4, num_hops=size(2, 5), seed=11)
    cold = ask_for(document, document.questions[0])
    before = metric(server.url, "batch_steps_total", "sparse")  # of SGLang's own first request
    (answer,) = generate_all(server.url, [cold], concurrency=1)
    assert answer is not None
    assert not wrong_answers([cold], [answer])
    report = answer["meta_info"]["sparsekv"]
    assert report["rejected"] is None and report["decode_steps"] == cold.tokens - 1
    assert report["tokens_attended"] < 0.25 * report["tokens_in_context"]
    assert metric(server.url, "batch_steps_total", "sparse") - before == cold.tokens - 1
    summarised = metric(server.url, "units_summarised_total")
    third = {"method": "quest", "budget": 0.3, "dense_layers": 1, "telemetry": True}
    covering = {"method": "quest", "coverage": 0.9, "budget": 0.9, "telemetry": True}
    second = {"method": "quest", "estimate": True, "reselect_every": 2}
    options = (None, {"method": "full"}, third, covering, *({"method": name} for name in TOLD))
    options += (second,)
    questions = (document.questions[1:] * 4)[: len(options)]
    asks = [
        ask_for(document, question, option)
        for question, option in zip(questions, options, strict=True)
    ]
    lost = ask_for(document, document.questions[0], {"method": "streaming"})
    answers = generate_all(server.url, [*asks, lost], concurrency=len(asks) + 1)
    assert not wrong_answers(asks, answers[:-1])
    every = [one["meta_info"]["sparsekv"]["reselect_every"] for one in answers if one]
    assert every == [3, 3, 1, 1, *[3] * len(TOLD), 2, 3]
    told = [one["meta_info"]["sparsekv"]["telemetry"] for one in answers if one]
    check_telemetry(told[2])
    assert told[0] is None, "it did not ask"
    assert told[3]["sampled_layers"] == 3 and told[3]["attention_mass"]["mean"] > 0.85
    samples = metric(server.url, "attention_mass_samples_total", "quest")
    assert samples == (2 + 3) * 4, "layers that select and query heads of sampled steps"
    read = [one["meta_info"]["sparsekv"] for one in answers[2:4] if one]
    shares = [report["tokens_attended"] / report["tokens_in_context"] for report in read]
    assert 0.3 < shares[0] < 0.7, "a layer of three, and 0.3 of the others"
    assert 0.05 < shares[1] < 0.9, "as much as covers its goal, below its ceiling"
    assert wrong_answers([lost], answers[-1:]), "streaming cannot see the middle of the document"
    assert all(one["meta_info"]["cached_tokens"] >= 512 for one in answers if one)
    new = metric(server.url, "units_summarised_total") - summarised
    assert summarised >= 600 // 16, "the first request summarised the document"
    assert new < 600 // 16, "the shared prefix was summarised again"
    for method in ("clusterkv", "pqcache", "residual_pq"):
        built = metric(server.url, "segments_indexed_total", method)
        assert built == 1, "the shared segment has one record"
    for method in LEVELS:
        assert metric(server.url, "segments_indexed_total", method) >= 600 // 128
    fleet.stop("interpreted")
