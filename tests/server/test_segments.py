"""Clusters, codebooks and landmarks on the shared prefix, in a running server."""

import pytest

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import ask_for, generate_all, metric, post, wrong_answers
from .fleet import SEGMENTED, Fleet
from .test_answers import selections

BUDGET = 512
WIDER = {"quest_two_level": 1024}
"""It is approximate: every page of these documents holds a sign post, so a segment's bound says
little, and with 512 tokens it found 14 of 16 answers at 16k."""
SIZES = {"clusterkv": 1024, "pqcache": 4096, "quest_two_level": 128, "residual_pq": 512}
"""Tokens of a segment, by method."""
LENGTHS = (8192, *(pytest.param(n, marks=pytest.mark.soak) for n in (16_384, 32_768)))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("method", SEGMENTED)
def test_every_question_cold_and_on_a_prefix_hit(
    fleet: Fleet, ours: ServerProcess, method: str, length: int
) -> None:
    """The same tokens are read both times; a hit builds no record of the document anew.

    The server compares records and fields with the keys all the while (`--sparsekv-check raise`).
    """
    assert post(f"{ours.url}/flush_cache", {})[0] == 200
    document = chain_document(length, num_questions=16, num_hops=16, seed=length)
    budget = WIDER.get(method, BUDGET)
    options = {"method": method, "budget": budget}
    built, seen = [metric(ours.url, "segments_indexed_total", method)], []
    for name in ("cold", "warm"):
        rid = f"segments-{name}-{method}-{length}"
        seen.append(
            selections(fleet, ours, ask_for(document, document.questions[0], options, rid=rid))
        )
        built.append(metric(ours.url, "segments_indexed_total", method))
    assert len(seen[0]) >= 15 * 3, "15 steps of 3 layers"
    assert seen[0] == seen[1]
    if method in SIZES:
        assert built[1] - built[0] >= length // SIZES[method]
        assert built[2] - built[1] <= 1, "records of the shared prefix were built again"
    asks = [ask_for(document, question, options) for question in document.questions]
    answers = generate_all(ours.url, asks, concurrency=8)
    assert wrong_answers(asks, answers) == []
    assert all(one["meta_info"]["cached_tokens"] >= length - 64 for one in answers if one)
    read = [one["meta_info"]["sparsekv"] for one in answers if one]
    assert all(r["tokens_attended"] <= r["decode_steps"] * 3 * budget for r in read)
    assert metric(ours.url, "segments_unindexed_total") == 0
    assert metric(ours.url, "stale_units_total") == 0


def test_methods_mix_in_one_batch_over_one_prefix(ours: ServerProcess) -> None:
    """Tokens, chunks and units of 16, dense rows among them; a ratio and dense layers as well."""
    document = chain_document(9000, num_questions=14, num_hops=8, seed=90)
    options = [
        *({"method": method, "budget": BUDGET} for method in SEGMENTED),
        *({"method": method, "budget": 0.06, "dense_layers": 1} for method in SEGMENTED),
        {"method": "full"},
        {"method": "quest", "budget": 256},
        {"method": "clusterkv", "budget": BUDGET, "sink": 0, "window": 1},
        {"method": "pqcache", "budget": BUDGET, "sink": 0, "window": 0},
    ]
    asks = [
        ask_for(document, question, option)
        for question, option in zip(document.questions, options, strict=True)
    ]
    assert wrong_answers(asks, generate_all(ours.url, asks, concurrency=len(asks))) == []
