"""Random requests over all fields of all routes, extreme values included, from one seed.

Fields are found by walking SGLang's classes, so what it adds tomorrow is sent tomorrow.
"""

import json
import random
from dataclasses import dataclass, fields
from typing import Any

HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, -(2**63) - 1, 10**30)
NUMBERS = (0, 1, -1, 2, 7, *HUGE, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e-45, 1e38, 1e39, -1e39, 1e308)
ODD_NUMBERS = (float("nan"), float("inf"), float("-inf"))
TEXTS = ("", "a", "x", "HEALTH_CHECK_1", "\x00", "\ud800", "💥", "a" * 5000, "a b\n" * 500)
LISTS: tuple[list[Any], ...] = (
    [], [None], [[]], [0], [1, 2], ["x"], ["x", "y"], [2**40], [-1], [0.5], [[0.5]], [{}],
    [True], [[1], [2**40]], [["x"]], [1] * 3000,
)  # fmt: skip
OBJECTS: tuple[dict[str, Any], ...] = (
    {}, {"a": 1}, {"5": 1e39}, {"5": None}, {"5": "x"}, {"5": 5.0}, {"-1": 1}, {"9999999": 1},
    {"5": -1e39}, {"a": {"b": [1, {"c": 2}]}}, {"id": 5}, {"sparsekv": {"budget": 512}},
)  # fmt: skip
PATTERNS = ("(", "(a+)+$", "(a|a)*b", "a*a*a*a*b", "[", "a{1000000}", "\\d+", "(?P<x>a)(?P<x>b)")
GRAMMARS = (
    "{", "[]", "{}", '{"type": "object"}', '{"type": 5}', '{"$ref": "#"}', "((a{1,99}){1,99}){1,9}",
    "root ::= root", 'root ::= "a"', "root ::= ", '{"type":"structural_tag"}', "a" * 3000,
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, False, *NUMBERS, *ODD_NUMBERS, *TEXTS, *LISTS, *OBJECTS, *PATTERNS, *GRAMMARS,
)  # fmt: skip
SPARSEKV: dict[str, tuple[Any, ...]] = {
    "method": ("quest", "full", "streaming", "nope", 3),
    "budget": (512, 256, 0.1, 1.0, 0, -1, 2**40, 1e300, "x"),
    "coverage": (0.5, 0.95, None, 1.0, "x"),
    "budget_split": ("even", "heads", 1),
    "sink": (0, 16, -1, 2**31),
    "window": (0, 64, 2**40, 1.5),
    "dense_layers": (0, 2, 99, -1),
    "reselect_every": (1, 4, 0, 5000),
    "kept_map": (True, False, 1),
    "telemetry": (True, False, 1),
}
FINE: tuple[tuple[str, Any], ...] = (
    ("temperature", 0.7), ("top_k", 5), ("top_p", 0.5), ("frequency_penalty", -2),
    ("presence_penalty", 2), ("stop", ["x", "y"]), ("temperature", 1e-6), ("top_k", -1),
)  # fmt: skip
"""What every route but a score takes, most of it at an end of its range."""
SESSIONS = ("s0", "s1", "s2", "s3")
"""Names of sessions, which some cases open and close and others go on in."""
TURNS = ("t0", "t1", "t2")
"""Names of requests, so that turns of a session find earlier ones."""
ADAPTER = "plus"
"""Name of a LoRA adapter that some servers have."""
LENGTH_FIELDS = ("max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens")
"""How long an answer may be: what is not refused there is read to its first bytes only."""
CHAT = {"model": "default", "messages": [{"role": "user", "content": "a b"}]}
SHORT = {"max_new_tokens": 2}


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        route: path.
        body: JSON.
        endless: it may have asked for a long answer: read its head alone.
    """

    route: str
    body: bytes
    endless: bool

    def __str__(self) -> str:
        """What to paste to send it again."""
        shown = self.body.decode()
        return f"{self.route} {shown[:1000]}" + f"... ({len(shown)})" * (len(shown) > 1000)


def routes() -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Each route's request that is fine, and every field of its class."""
    from sglang.srt.entrypoints.anthropic import protocol as anthropic
    from sglang.srt.entrypoints.ollama import protocol as ollama
    from sglang.srt.entrypoints.openai import protocol as openai
    from sglang.srt.managers.io_struct import (
        CloseSessionReqInput,
        EmbeddingReqInput,
        GenerateReqInput,
        OpenSessionReqInput,
    )

    score = {"model": "default", "query": "a", "items": ["b"], "label_token_ids": [5]}
    short = {**CHAT, "max_tokens": 2}
    few = {"num_predict": 2}
    answers = {"input": "a b", "max_output_tokens": 4, "store": False}
    pydantic: dict[str, tuple[dict[str, Any], Any]] = {
        "/v1/completions": (
            {"model": "default", "prompt": "a b", "max_tokens": 2},
            openai.CompletionRequest,
        ),
        "/v1/chat/completions": (short, openai.ChatCompletionRequest),
        "/invocations": (short, openai.ChatCompletionRequest),
        "/v1/responses": (answers, openai.ResponsesRequest),
        "/v1/score": (score, openai.ScoringRequest),
        "/v1/embeddings": ({"model": "default", "input": "a"}, openai.EmbeddingRequest),
        "/v1/messages": (short, anthropic.AnthropicMessagesRequest),
        "/api/chat": ({**CHAT, "options": few}, ollama.OllamaChatRequest),
        "/api/generate": (
            {"model": "default", "prompt": "a b", "options": few},
            ollama.OllamaGenerateRequest,
        ),
    }
    found = {route: (body, [*model.model_fields]) for route, (body, model) in pydantic.items()}
    native = {"text": "a b", "sampling_params": SHORT}
    found["/generate"] = (native, [entry.name for entry in fields(GenerateReqInput)])
    found["/vertex_generate"] = (
        {"instances": [{"text": "a b"}], "parameters": {"sampling_params": SHORT}},
        ["instances", "parameters", *(entry.name for entry in fields(GenerateReqInput))],
    )
    found["/classify"] = ({"text": "a"}, [entry.name for entry in fields(EmbeddingReqInput)])
    session: dict[str, tuple[dict[str, Any], Any]] = {
        "/open_session": (
            {"capacity_of_str_len": 1000, "session_id": "s0"},
            OpenSessionReqInput,
        ),
        "/close_session": ({"session_id": "s0"}, CloseSessionReqInput),
    }
    for route, (body, struct) in session.items():
        found[route] = (body, [*struct.__struct_fields__])
    return found


class RequestMaker:
    """Makes cases."""

    def __init__(self, seed: int) -> None:
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.rng = random.Random(seed)
        self.routes = routes()
        self.sampling = [*SamplingParams.__struct_fields__, "seed", "unknown"]
        # The native route has most fields, and each of them two places.
        self.weights = [6 if route == "/generate" else 1 for route in self.routes]

    def case(self) -> Case:
        """The next request."""
        rng = self.rng
        route = rng.choices([*self.routes], self.weights)[0]
        good, names = self.routes[route]
        body = json.loads(json.dumps(good))
        if rng.random() < 0.2 and "text" in body:
            body = {**body, "text": ["a b", "b"]}
        if route == "/generate" and rng.random() < 0.15:
            body["session_params"] = self._session()
        if route.endswith("_session"):
            body["session_id"] = rng.choice(SESSIONS)
        if route == "/open_session":
            body["streaming"] = rng.random() < 0.5
        changed = [self._change(route, body, names) for _ in range(rng.choice((1, 1, 2, 3)))]
        if rng.random() < 0.3:
            body["stream"] = True
        endless = any(name in (*LENGTH_FIELDS, "num_predict", "ignored") for name in changed)
        try:
            raw = json.dumps(body).encode()
        except RecursionError:
            raw = b"{}"
        return Case(route, raw, endless or _is_unbounded(route, body))

    def _change(self, route: str, body: dict[str, Any], names: list[str]) -> str:
        """Give one field another value; its name."""
        rng = self.rng
        if rng.random() < 0.3:
            name, value = rng.choice(FINE)
            (_sampling_of(route, body) or body)[name] = value
            return name
        place = rng.random()
        holder = _sampling_of(route, body)
        if holder is not None and place < 0.5:
            name = rng.choice(self.sampling) if route != "/api/chat" else rng.choice(_OLLAMA)
            holder[name] = self._value(name)
            return name
        if place < 0.6:
            where = body if holder is None else holder
            options = {rng.choice([*SPARSEKV]): None for _ in range(2)}
            chosen = {name: rng.choice(SPARSEKV[name]) for name in options}
            where["custom_params"] = {"sparsekv": chosen}
            return "custom_params"
        name = rng.choice(names)
        body[name] = self._value(name)
        return name

    def _session(self) -> dict[str, Any]:
        """A turn of one of the sessions, which may go on in the middle of it."""
        rng = self.rng
        turn: dict[str, Any] = {"id": rng.choice((*SESSIONS, "never opened"))}
        if rng.random() < 0.5:
            name = rng.choice(("rid", "offset", "replace", "drop_previous_output"))
            turn[name] = {"rid": rng.choice(TURNS), "offset": rng.choice((1, 3, 2**31 - 1))}.get(
                name, True
            )
        return turn

    def _value(self, name: str) -> Any:
        rng = self.rng
        if name == "rid" and rng.random() < 0.5:
            return rng.choice(TURNS)
        if name == "session_params" and rng.random() < 0.8:
            return self._session()
        if name in ("lora_path", "model") and rng.random() < 0.5:
            return rng.choice((ADAPTER, f"default:{ADAPTER}", [ADAPTER, None], "no such adapter"))
        if name in ("json_schema", "ebnf", "structural_tag") and rng.random() < 0.5:
            return rng.choice(GRAMMARS)
        if name in ("regex", "stop_regex") and rng.random() < 0.5:
            return rng.choice((*PATTERNS, *GRAMMARS))
        if rng.random() < 0.4:
            return rng.choice((*NUMBERS, *ODD_NUMBERS))
        return rng.choice(JUNK)


_OLLAMA = (
    *("temperature", "top_p", "top_k", "num_predict", "stop", "presence_penalty", "seed"),
    *("frequency_penalty", "unknown"),
)


def _sampling_of(route: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Where a body keeps its sampling parameters, if that is an object of its own."""
    if route == "/vertex_generate":
        parameters = body.get("parameters")
        body = parameters if isinstance(parameters, dict) else {}
    found = body.get("options" if route.startswith("/api/") else "sampling_params")
    return found if isinstance(found, dict) else None


def _is_unbounded(route: str, body: dict[str, Any]) -> bool:
    """Whether a field that bounds the answer is gone."""
    if route in ("/generate", "/vertex_generate") or route.startswith("/api/"):
        holder = _sampling_of(route, body) or {}
        return not any(isinstance(holder.get(n), int) for n in ("max_new_tokens", "num_predict"))
    return not any(
        isinstance(body.get(n), int) for n in ("max_tokens", "max_output_tokens")
    ) and route not in ("/v1/score", "/v1/embeddings", "/classify")
