"""Whatever a client sends: bad options are a 400 that names them, and the server goes on."""

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .fleet import Fleet

pytestmark = pytest.mark.server
CASES = 500
SEED = 20_406_774
ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions")
PROMPT = list(range(5, 200))
JSON = {"content-type": "application/json"}
GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}

BAD_VALUES: dict[str, list[Any]] = {
    "method": ["", "QUEST", "ⓠuest", "x" * 5000, 3, None, [], {"quest": 1}, True],
    "budget": [0, -1, 1.5, -0.5, "512", 2**31, 2**70, None, True, [512], {}, 16, 1e300, 0.0],
    "coverage": [0, 1, 1.0, 0.0, -0.5, "0.9", True, [0.9], {}, 1e300],
    "budget_split": ["", "Heads", None, 1, True, ["heads"]],
    "sink": [-1, 1.0, "16", None, 2**31, [], False],
    "window": [-64, 0.5, "x", None, 2**40, {}],
    "dense_layers": [-1, 10_001, "2", 1.5, None],
    "reselect_every": [0, -1, 1025, "1", None, 0.5],
    "kept_map": [0, "true", None],
    "telemetry": [0, 1, "true", None, [], {}, 1.0],
    "share_generated": [0, "false", None, [], 1.0],
    "bugdet": [1],
    "Budget": [512],
    "sparsekv": [{"budget": 512}],
    "\n\x00": [1],
    "b" * 3000: [1],
}
WHOLE = [None, [], "quest", 5, True, [{"budget": 512}], 1e308]
STRAY_NAMES = ("sparsekv", "sparse", "SparseKV", "sparsekv_budget", "sparsekv-method")


def post(url: str, route: str, body: Any) -> tuple[int, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + route, raw, JSON)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def request_body(route: str, custom_params: Any, stream: bool) -> dict[str, Any]:
    """A request that is fine but for its custom parameters."""
    if route == "/generate":
        sampling = {**GREEDY, "custom_params": custom_params}
        return {"input_ids": PROMPT, "sampling_params": sampling, "stream": stream}
    body = {"model": "default", "max_tokens": 8, "custom_params": custom_params, "stream": stream}
    if route == "/v1/completions":
        return {**body, "prompt": PROMPT}
    return {**body, "messages": [{"role": "user", "content": "hello"}]}


def bad_request(rng: random.Random) -> tuple[str, dict[str, Any], str]:
    """A route, a body with one thing wrong in it, and a word its answer must hold."""
    route, stream = rng.choice(ROUTES), rng.random() < 0.5
    kind = rng.randrange(6)
    if kind == 0:
        body = request_body(route, {"sparsekv": rng.choice(WHOLE)}, stream)
        return route, body, "sparsekv"
    if kind == 1:
        name = rng.choice(STRAY_NAMES)
        body = request_body(route, {}, stream)
        holder = body["sampling_params"] if route == "/generate" and rng.random() < 0.5 else body
        holder[name] = {"budget": 512}
        return route, body, name
    if kind == 2:
        name = rng.choice(("budget", "method", "sink", "sparse"))
        return route, request_body(route, {name: 512}, stream), f"custom_params.{name}"
    if kind == 3:
        bad = rng.choice([-1, 2**31, 10**9, -(2**40)])
        at = rng.randrange(len(PROMPT))
        ids = [*PROMPT[:at], bad, *PROMPT[at:]]
        if rng.random() < 0.5:
            body = request_body("/v1/completions", {}, stream)
            return "/v1/completions", {**body, "prompt": [PROMPT, ids]}, f"[1][{at}]"
        return "/generate", {**request_body("/generate", {}, stream), "input_ids": ids}, f"[{at}]"
    name = rng.choice(list(BAD_VALUES))
    options = {"sink": 16, name: rng.choice(BAD_VALUES[name])}
    if kind == 4:
        item = rng.randrange(3)
        good = {**GREEDY, "custom_params": {"sparsekv": {"budget": 512}}}
        params = [dict(good) for _ in range(3)]
        params[item]["custom_params"] = {"sparsekv": options}
        body = {"input_ids": [PROMPT] * 3, "sampling_params": params, "stream": stream}
        return "/generate", body, f"request {item} of the batch"
    word = name if name in ("sink", "window", "budget", "method") else "sparsekv"
    return route, request_body(route, {"sparsekv": options}, stream), word


def good_answer(url: str) -> list[int]:
    body = {"input_ids": PROMPT, "sampling_params": GREEDY}
    status, answer = post(url, "/generate", body)
    assert status == 200, answer
    tokens: list[int] = json.loads(answer)["output_ids"]
    return tokens


def test_bad_requests_are_refused_while_good_ones_stay_exact(server: Any) -> None:
    rng = random.Random(SEED)
    expected = good_answer(server.url)
    cases = [bad_request(rng) for _ in range(CASES)]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda case: post(server.url, case[0], case[1]), cases)
        meanwhile = [pool.submit(good_answer, server.url) for _ in range(8)]
        for (route, body, word), (status, answer) in zip(cases, answers, strict=True):
            assert status == 400, (route, body, answer)
            assert word in json.loads(answer).get("error", json.loads(answer))["message"]
    assert [each.result() for each in meanwhile] == [expected] * len(meanwhile)
    assert good_answer(server.url) == expected


def test_stop_tokens_outside_the_vocabulary(server: Any) -> None:
    for token in (-1, 10**9):
        sampling = {**GREEDY, "stop_token_ids": [token], "min_new_tokens": 2}
        status, answer = post(server.url, "/generate", {"text": "x", "sampling_params": sampling})
        assert status == 400 and "stop_token_ids" in answer
    assert good_answer(server.url)


@pytest.mark.parametrize("prompt", [{"input_ids": []}, {"input_ids": [[]]}, {"text": ""}])
def test_prompts_without_tokens_leave_the_server_alive(server: Any, prompt: Any) -> None:
    for stream in (False, True):
        post(server.url, "/generate", {**prompt, "sampling_params": GREEDY, "stream": stream})
    assert good_answer(server.url)


@pytest.mark.parametrize("number", [-3, 10**6])
def test_more_log_probabilities_than_tokens(server: Any, number: int) -> None:
    body = {"text": "x", "sampling_params": GREEDY, "return_logprob": True}
    for stream in (False, True):
        asked = {**body, "top_logprobs_num": number, "stream": stream}
        status, answer = post(server.url, "/generate", asked)
        assert status == 400 and "top_logprobs_num" in answer
    assert good_answer(server.url)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"sparsekv"', b"\xff\xfe", b"[]", b"null", b'"sparsekv"']
)
def test_bodies_that_are_no_objects_leave_the_server_alive(server: Any, raw: bytes) -> None:
    for route in ROUTES:
        assert 400 <= post(server.url, route, raw)[0] < 500
    assert good_answer(server.url)


ODD_SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": [["a"]]}),
    ("/v1/completions", {"prompt": [[1, 2], [3]]}),
    ("/v1/completions", {"prompt": ["a", "b"], "custom_params": [{}, {}]}),
    ("/v1/completions", {"prompt": "a", "echo": True, "max_tokens": 0, "logprobs": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": []}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]}),
    ("/v1/chat/completions", {"messages": []}),
    ("/api/generate", {"prompt": "a", "options": {"seed": 1}}),
    ("/api/chat", {"messages": [{"role": "user", "content": "a"}], "options": {"top_p": 5}}),
    ("/generate", {"text": "a", "rid": ["x", "y"]}),
    ("/generate", {"text": "a", "sampling_params": {"n": None}}),
    ("/generate", {"text": "a", "sampling_params": []}),
    ("/generate", {"text": "a", "session_params": {"other": 1}}),
]


@pytest.mark.parametrize(("route", "given"), ODD_SHAPES)
def test_odd_shapes_are_answered_or_refused(server: Any, route: str, given: Any) -> None:
    for stream in (False, True):
        body = {"model": "default", "max_tokens": 2, "stream": stream, **given}
        if route == "/generate":
            body = {"sampling_params": GREEDY, "stream": stream, **given}
        status, answer = post(server.url, route, body)
        assert status in (200, 400), answer


UNSPELLED = json.dumps({"const": "é"})
UNSPELLED_ON_ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("/generate", "regex", {"text": "a", "sampling_params": {**GREEDY, "regex": "é+"}}),
    ("/generate", "ebnf", {"text": ["a"], "sampling_params": {"ebnf": 'root ::= "é"', "top_k": 3}}),
    ("/vertex_generate", "json_schema", {
        "instances": [{"text": "a"}],
        "parameters": {"sampling_params": {"json_schema": UNSPELLED}},
    }),
    ("/v1/completions", "regex", {"prompt": "a", "regex": "é+"}),
    ("/v1/chat/completions", "ebnf", {"ebnf": 'root ::= "é"'}),
    ("/invocations", "json_schema", {"response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": json.loads(UNSPELLED)},
    }}),
    ("/v1/responses", "json_schema", {"input": "a", "text": {
        "format": {"type": "json_schema", "name": "x", "schema": json.loads(UNSPELLED)},
    }}),
]  # fmt: skip


def served_name(url: str) -> str:
    """Name of the model that a server has."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


@pytest.mark.parametrize(("route", "field", "given"), UNSPELLED_ON_ROUTES)
def test_a_grammar_that_no_tokens_spell_is_the_clients(
    server: Any, route: str, field: str, given: Any
) -> None:
    messages = {"messages": [{"role": "user", "content": "a"}]}
    openai = {"model": "default", "max_tokens": 4, "temperature": 0, **messages}
    # A stream of responses has begun before its request is looked at.
    for stream in (False,) if route == "/v1/responses" else (False, True):
        body = {**({} if route.endswith("generate") else openai), **given, "stream": stream}
        if route == "/v1/responses":
            del body["messages"]
            body["model"] = served_name(server.url)  # the other routes take any
        status, answer = post(server.url, route, body)
        assert status == 400, answer
        assert f"{field} must be what tokens of the model can spell" in answer
    begun = {"text": "a", "sampling_params": {**GREEDY, "regex": "(every|river) é"}}
    status, answer = post(server.url, "/generate", begun)
    assert status == 400 and "regex must be what tokens" in answer
    assert good_answer(server.url)


def test_a_refused_stream_leaves_its_connection_open(server: Any) -> None:
    """SGLang comes back to a stream two seconds behind its end."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.connect()
    first = connection.sock
    refused = {"text": "a", "sampling_params": {"top_k": 0}, "stream": True}
    for body, expected in (({**refused, "rid": ["x"]}, 400), (refused, 400), ({"text": "a"}, 200)):
        time.sleep(2.5 if expected == 200 else 0)
        connection.request("POST", "/generate", json.dumps(body), JSON)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (expected, True)
    assert connection.sock is first, "the connection was opened anew"
    connection.close()


def test_options_beside_their_place_in_a_vertex_request(server: Any) -> None:
    body = {"instances": [{"text": "a", "sparsekv": {"budget": 512}}]}
    status, answer = post(server.url, "/vertex_generate", body)
    assert status == 400 and "parameters.sampling_params.custom_params.sparsekv" in answer


def test_prompts_that_leave_no_room_are_refused_and_the_longest_others_answered(
    fleet: Fleet,
) -> None:
    """The pool holds 8,192 tokens in pages of 16, one of which is kept back."""
    url = fleet.get("python_tree").url
    for length, room in ((8176, 0), (8160, 15)):
        body = {"input_ids": [5] * length, "sampling_params": {**GREEDY, "max_new_tokens": 64}}
        for stream in (False, True) if not room else (False,):
            status, answer = post(url, "/generate", {**body, "stream": stream})
            assert status == (200 if room else 400), answer
            if room:
                assert json.loads(answer)["meta_info"]["completion_tokens"] == room
            else:
                assert "prompt must leave room" in answer


def test_nothing_to_decode_is_reported_as_that(server: Any) -> None:
    for tokens in (0, 1):
        sampling = {**GREEDY, "max_new_tokens": tokens}
        body = {"input_ids": PROMPT, "sampling_params": sampling}
        status, answer = post(server.url, "/generate", body)
        assert status == 200, answer
        assert find_report(answer)["decode_steps"] == 0


def test_a_response_says_what_was_applied(server: Any) -> None:
    options = {"method": "streaming", "budget": 128, "dense_layers": 0}
    for route in ROUTES:
        for stream in (False, True):
            body = request_body(route, {"sparsekv": options}, stream)
            status, answer = post(server.url, route, body)
            assert status == 200, answer
            applied = find_report(answer)
            assert applied.items() >= options.items() and applied["rejected"] is None
            assert 0 < applied["tokens_attended"] <= applied["tokens_in_context"]


def test_every_streamed_choice_tells_its_report_once(server: Any) -> None:
    """With usage in every chunk, tools, and words that look like the JSON around them."""
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
    words = 'say "finish_reason":"stop" and "index":0,'
    body = {
        **request_body("/v1/chat/completions", {"sparsekv": {"budget": 256}}, stream=True),
        "messages": [{"role": "user", "content": words}],
        "n": 4,
        "temperature": 1,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "tools": [{"type": "function", "function": tool}],
    }
    status, answer = post(server.url, "/v1/chat/completions", body)
    assert status == 200, answer
    lines = [line for line in answer.split("\n\n") if line and line != "data: [DONE]"]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    told = [event for event in events if (event.get("metadata") or {}).get("sparsekv")]
    assert sorted(event["choices"][0]["index"] for event in told) == [0, 1, 2, 3]
    assert all(event["choices"][0]["finish_reason"] for event in told)
    assert all(event["metadata"]["sparsekv"]["budget"] == 256 for event in told)
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] > 0


def find_report(answer: str) -> dict[str, Any]:
    """The report in an answer, or in the one chunk of a stream that has it."""
    texts = answer.split("\n\n") if answer.startswith("data: ") else [answer]
    events = [json.loads(t.removeprefix("data: ")) for t in texts if "{" in t]
    holders = [event.get("meta_info") or event.get("metadata") or {} for event in events]
    reports: list[dict[str, Any]] = [h["sparsekv"] for h in holders if "sparsekv" in h]
    assert len(reports) == 1
    return reports[0]
