"""`telemetry` over every API: what is told, and that asking changes nothing else."""

import json
import urllib.request
from typing import Any

import pytest

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import ask_for, body_of, generate, metric, post

ASKED = {"method": "quest", "budget": 256, "telemetry": True}
STREAMING = {"method": "streaming", "budget": 256, "telemetry": True}
STEPS = 40


def test_asking_changes_neither_the_answer_nor_what_is_counted(ours: ServerProcess) -> None:
    """Beyond a second sample; log-probabilities to the last bit."""
    document = chain_document(4096, num_questions=1, num_hops=STEPS, seed=41)
    asks = [
        ask_for(document, document.questions[0], ASKED | {"telemetry": asked})
        for asked in (False, True)
    ]
    generate(ours.url, asks[0])  # both are prefix hits
    plain, told = (generate(ours.url, ask, return_logprob=True)["meta_info"] for ask in asks)
    assert told["output_token_logprobs"] == plain["output_token_logprobs"]
    report, other = told["sparsekv"], plain["sparsekv"]
    assert other.pop("telemetry") is None
    telemetry = report.pop("telemetry")
    assert report == other and report["decode_steps"] >= STEPS - 1
    print(f"quest, 256 of 4096 tokens: {telemetry}")
    assert telemetry["sampled_steps"] == 3 and telemetry["sampled_layers"] == 3
    assert telemetry["requests_per_group"] == 1 and telemetry["reason"] is None
    assert telemetry["select_ms"] > 0 and telemetry["attend_ms"] > 0


def test_the_mass_tells_a_method_that_finds_from_one_that_does_not(ours: ServerProcess) -> None:
    """One layer of this model attends to a single page, which streaming does not see."""
    document = chain_document(4096, num_questions=1, num_hops=8, seed=43)
    mass, certain = {}, {}
    before = [metric(ours.url, f"attention_mass{name}_total", "quest") for name in ("", "_samples")]
    for options in (ASKED, STREAMING, {"method": "full", "telemetry": True}):
        answer = generate(ours.url, ask_for(document, document.questions[0], options))
        told = answer["meta_info"]["sparsekv"]["telemetry"]
        mass[options["method"]], certain[options["method"]] = (
            told[name] for name in ("attention_mass", "certificate")
        )
    print(mass, certain)
    assert 0 < certain["quest"]["mean"] <= mass["quest"]["mean"] and certain["streaming"] is None
    assert certain["full"] == {"mean": 1.0, "least": 1.0, "gap": 0.0}
    assert mass["quest"]["layers"]["2"] > 0.9 > 0.1 > mass["streaming"]["layers"]["2"]
    assert mass["streaming"]["least"] < 0.1
    assert mass["full"] == {"mean": 1.0, "least": 1.0, "layers": {}}
    after = [metric(ours.url, f"attention_mass{name}_total", "quest") for name in ("", "_samples")]
    total, samples = (b - a for a, b in zip(before, after, strict=True))
    assert samples == 3 * 4, "layers and query heads of one sampled step"
    assert total / samples == pytest.approx(mass["quest"]["mean"], abs=1e-5)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses_tell_it(ours: ServerProcess, route: str, stream: bool) -> None:
    """In `metadata`, streamed or not; and which tokens a view kept."""
    asked = {"method": "snapkv", "budget": 128, "telemetry": True, "kept_map": True}
    prompt = chain_document(700, 1, 4, seed=5).text
    said = {"prompt": prompt} if "chat" not in route else {}
    if not said:
        said = {"messages": [{"role": "user", "content": prompt}]}  # type: ignore[dict-item]
    body = {"model": "default", "max_tokens": 6, "ignore_eos": True, "temperature": 0, **said}
    body |= {"custom_params": {"sparsekv": asked}, "stream": stream}
    report = _streamed(ours.url + route, body) if stream else _whole(ours.url + route, body)
    assert report["telemetry"]["how"] == "sampled"
    assert 0 < report["telemetry"]["attention_mass"]["mean"] <= 1
    view = report["view"]
    assert all(sum(head) == view["made"] for heads in view["map"].values() for head in heads)
    assert view["map"].keys() == view["mass"].keys() == view["kept"].keys() == {"0", "1", "2"}


def _whole(url: str, body: dict[str, Any]) -> Any:
    status, answer = post(url, body)
    assert status == 200, answer
    return answer["metadata"]["sparsekv"]


def _streamed(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        events = [line[6:] for line in answer.read().decode().splitlines() if line[:6] == "data: "]
    found = [json.loads(event).get("metadata") for event in events if event != "[DONE]"]
    (metadata,) = [one for one in found if one and "sparsekv" in one]
    return metadata["sparsekv"]


def test_a_wrong_type_is_refused_everywhere(ours: ServerProcess) -> None:
    """400 with name, rule and value."""
    wrong = {"custom_params": {"sparsekv": {"telemetry": "yes"}}}
    document = chain_document(300, 1, 4, seed=5)
    native = body_of(ask_for(document, document.questions[0]))
    native["sampling_params"] |= wrong
    openai = {"model": "default", "max_tokens": 2, **wrong}
    bodies = {
        "/generate": native,
        "/v1/completions": {**openai, "prompt": "a"},
        "/v1/chat/completions": {**openai, "messages": [{"role": "user", "content": "a"}]},
    }
    for route, body in bodies.items():
        status, answer = post(ours.url + route, body)
        assert status == 400
        assert "sparsekv.telemetry must be true or false, got 'yes'" in json.dumps(answer)
