"""The guard answers 400 to what it refuses, and passes everything else untouched."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest

from sgl_sparsekv.serving import guard
from sgl_sparsekv.serving.front_end import FrontEnd
from sgl_sparsekv.serving.guard import RequestGuard, install


class Application:
    """Reads its request and answers in two chunks."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})


def chunks_of(body: bytes, size: int) -> Iterator[dict[str, Any]]:
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    for i, part in enumerate(parts):
        yield {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}


def sent_by(
    app: Any,
    path: str,
    body: Any,
    method: str = "POST",
    root: str = "",
    size: int = 100,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> list[dict[str, Any]]:
    """Messages of the answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    incoming = chunks_of(raw, size)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
    scope |= {"headers": [*headers], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return sent


def call(app: Any, path: str, body: Any, **how: Any) -> tuple[int, bytes]:
    """Status and body of the answer."""
    sent = sent_by(app, path, body, **how)
    status = sent[0]["status"] if sent else 0
    return status, b"".join(message.get("body", b"") for message in sent)


@pytest.fixture
def app(front_end: FrontEnd) -> RequestGuard:
    return RequestGuard(Application(), front_end)


def in_place(options: Any) -> dict[str, Any]:
    return {"text": "x", "sampling_params": {"custom_params": {"sparsekv": options}}}


GOOD = [
    ("/generate", in_place({"budget": 512})),
    ("/generate", {"text": "sparse " * 100}),
    ("/v1/completions", {"prompt": "x", "custom_params": {"sparsekv": {"method": "full"}}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": '{"sparsekv": {}}'}]}),
    ("/v1/messages", {"messages": []}),
    ("/other", {"sparsekv": 1}),
    ("/generate", b'{"sparsekv": '),
    ("/generate", b'["sparsekv"]'),
    ("/generate", b""),
    ("/generate", b"\xff\xfesparsekv"),
]


@pytest.mark.parametrize(("path", "body"), GOOD)
@pytest.mark.parametrize("root", ["", "/prefix"])
def test_other_requests_arrive_byte_for_byte(
    app: RequestGuard, path: str, body: Any, root: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert call(app, path, raw, root=root) == (200, b"onetwo")
    assert app.app.bodies == [raw]  # type: ignore[attr-defined]


BAD = [
    ("/generate", {"sparsekv": {}}, "sampling_params.custom_params.sparsekv"),
    ("/generate", {"text": "x", "rid": ["HEALTH_CHECK_1"]}, "rid must not start with HEALTH_CHECK"),
    ("/generate", {"text": "x", "token_indices_to_pool": [0]}, "/v1/score makes it"),
    ("/vertex_generate", {"parameters": {"multi_item_delimiter_indices": [[0]]}}, "left out"),
    ("/vertex_generate", {"instances": [{"SparseKV": {}}]}, "instances[0].SparseKV"),
    ("/vertex_generate", {"parameters": {"sparse": True}}, "sampling_params.custom_params"),
    ("/v1/chat/completions", {"sparse": True}, "custom_params.sparsekv"),
    ("/v1/chat/completions", {"custom_params": {"budget": 512}}, "custom_params.budget"),
    ("/v1/responses", {"sparsekv": {}}, "/v1/responses takes no options"),
]


@pytest.mark.parametrize(("path", "body", "words"), BAD)
def test_refusals_say_what_and_where(
    app: RequestGuard, front_end: FrontEnd, path: str, body: Any, words: str
) -> None:
    status, answer = call(app, path, body)
    parsed = json.loads(answer)
    error = parsed["error"] if path in ("/generate", "/vertex_generate") else parsed
    assert status == 400 and words in error["message"] and error["code"] == 400
    assert app.app.bodies == []  # type: ignore[attr-defined]
    assert sum(front_end.metrics.snapshot()["rejected_options_total"].values()) == 1


MESSAGES = ("/v1/messages", "/v1/messages/count_tokens")


@pytest.mark.parametrize("method", ("POST", "PUT"))
def test_an_answer_has_the_form_of_its_route(front_end: FrontEnd, method: str) -> None:
    """Each API's clients look for the text in a place of their own."""
    text = "top_k must be less"
    plain = {"message": text, "type": "BadRequestError", "param": None, "code": 400}
    anthropic = {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    forms: dict[str, dict[str, Any]] = dict.fromkeys(MESSAGES, anthropic)
    forms |= {path: {"error": plain} for path in ("/generate", "/vertex_generate")}
    forms |= {path: {"object": "error", **plain} for path in ("/v1/completions", "/api/chat")}
    for path, wanted in forms.items():
        speaker = Speaker([], ValueError(text))
        head, body = sent_by(RequestGuard(speaker, front_end), path, {}, method)
        assert json.loads(body["body"]) == wanted and body["type"] == "http.response.body"
        assert head["type"] == "http.response.start" and head["status"] == 400
        assert head["headers"] == [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body["body"])).encode()),
        ]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"rid": "HEALTH_CHECK_1"}, "rid must not start with HEALTH_CHECK, got 'HEALTH_CHECK_1'"),
        (
            {"rid": ["a", "HEALTH_CHECK" + "x" * 90]},
            f"rid must not start with HEALTH_CHECK, got 'HEALTH_CHECK{'x' * 48}'",
        ),
        (
            {"token_indices_to_pool": 0},
            "token_indices_to_pool must be left out: /v1/score makes it",
        ),
        (
            {"multi_item_delimiter_indices": []},
            "multi_item_delimiter_indices must be left out: /v1/score makes it",
        ),
    ],
)
def test_what_sglang_keeps_to_itself_is_refused_on_its_own_routes(
    app: RequestGuard, body: dict[str, Any], text: str
) -> None:
    """OpenAI's have no such fields; what the field says is cut short."""
    for path, whole in (("/generate", body), ("/vertex_generate", {"parameters": body})):
        status, answer = call(app, path, {"text": "x", **whole})
        assert status == 400 and json.loads(answer)["error"]["message"] == text
    for path in ("/v1/completions", "/v1/responses"):
        assert call(app, path, {"prompt": "x", **body})[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        {"rid": ["a", 5, None, "x HEALTH_CHECK"]}, {"rid": {"HEALTH_CHECK": 1}},
        {"token_indices_to_pool": None}, {"sparsekv_": 1, "custom": "health_check"},
    ],
)  # fmt: skip
def test_what_only_looks_like_it_passes(app: RequestGuard, body: dict[str, Any]) -> None:
    body.pop("sparsekv_", None)
    assert call(app, "/generate", {"text": "health_check", **body}) == (200, b"onetwo")
    assert call(app, "/vertex_generate", {"parameters": ["health_check"]})[0] == 200


def test_every_part_of_a_body_is_searched_for_what_is_ours(app: RequestGuard) -> None:
    """In any case, whichever part it stands in, whatever stands behind it."""
    for lead, tail in ((0, 900), (450, 450), (900, 0)):
        body = {"text": "x" * lead, "RID": 1, "rid": "HEALTH_CHECK", "more": "x" * tail}
        assert call(app, "/generate", body)[0] == 400


def messages_of(app: Any, events: list[dict[str, Any]], **scope: Any) -> list[dict[str, Any]]:
    """What is sent for events as a server may give them, with as little as ASGI asks for."""
    incoming, sent = iter(events), []

    async def receive() -> dict[str, Any]:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(
        app({"type": "http", "method": "POST", "path": "/generate", **scope}, receive, send)
    )
    return sent


def test_parts_may_lack_what_asgi_lets_them_lack(app: RequestGuard) -> None:
    """A body, whether more comes, and where the application is mounted."""
    begin: dict[str, Any] = {"type": "http.request", "more_body": True}
    end: dict[str, Any] = {"type": "http.request", "body": b'{"sparsekv": {}}'}
    for events in ([begin, end], [end], [begin, begin, end]):
        assert messages_of(app, events)[0]["status"] == 400
    assert messages_of(app, [{"type": "http.request"}])[0]["status"] == 200
    under = messages_of(app, [end], path="/prefix/generate", root_path="/prefix")
    assert under[0]["status"] == 400
    assert messages_of(app, [end], path="/generate/prefix", root_path="/prefix")[0]["status"] == 200


def test_a_body_that_names_nothing_of_ours_is_not_parsed(
    app: RequestGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "check_body", lambda *_: pytest.fail("it is parsed"))
    assert call(app, "/generate", {"text": "x" * 500}) == (200, b"onetwo")


def test_messages_before_the_head_and_without_a_body_pass(front_end: FrontEnd) -> None:
    wanted = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.start", "status": 200, "headers": []},
        {"type": "http.response.body"},
    ]

    async def speak(scope: Any, receive: Any, send: Any) -> None:
        for message in wanted:
            await send(message)

    assert messages_of(RequestGuard(speak, front_end), [{"type": "http.request"}]) == wanted


def test_a_body_of_the_bound_is_read_and_one_beyond_it_is_not(
    app: RequestGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.dumps({"sparsekv": {}, "text": "x" * 500}).encode()
    for bound, status in ((len(raw), 400), (len(raw) - 1, 200)):
        monkeypatch.setattr(guard, "MAX_BODY", bound)
        for size in (100, len(raw)):
            assert call(app, "/generate", raw, size=size)[0] == status
        parts = [{"type": "http.request", "body": raw, "more_body": True}, {"type": "http.request"}]
        assert messages_of(app, parts)[0]["status"] == status


def test_a_body_of_ten_megabytes(app: RequestGuard) -> None:
    body = {"text": "word " * 2_000_000, "sparsekv": {"budget": 0}}
    status, answer = call(app, "/generate", body, size=1 << 16)
    assert status == 400 and b"custom_params" in answer


def test_a_larger_body_than_the_bound_passes(
    app: RequestGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    body = {"sparsekv": {}, "text": "x" * 5000}
    assert call(app, "/generate", body)[0] == 200
    assert app.app.bodies == [json.dumps(body).encode()]  # type: ignore[attr-defined]


def test_a_client_that_leaves_while_it_sends(app: RequestGuard) -> None:
    async def receive() -> dict[str, Any]:
        return next(events, {"type": "http.disconnect"})

    events = iter([{"type": "http.request", "body": b'{"sparsekv"', "more_body": True}])
    scope = {"type": "http", "method": "POST", "path": "/generate", "root_path": ""}
    asyncio.run(app(scope, receive, None))  # type: ignore[arg-type]
    assert app.app.bodies == []  # type: ignore[attr-defined]


def test_other_connections_are_not_touched(front_end: FrontEnd) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    wrapped = RequestGuard(app, front_end)
    for scope in (
        {"type": "lifespan"},
        {"type": "websocket", "path": "/generate"},
        {"type": "http", "method": "GET", "path": "/generate", "root_path": ""},
    ):
        receive, send = object(), object()
        asyncio.run(wrapped(scope, receive, send))  # type: ignore[arg-type]
        assert seen[-1] == (scope, receive, send)


def test_installed_once_and_innermost(front_end: FrontEnd) -> None:
    from starlette.applications import Starlette
    from starlette.middleware.gzip import GZipMiddleware

    app = Starlette()
    app.add_middleware(GZipMiddleware)
    install(app, front_end)
    install(app, front_end)
    assert [entry.cls for entry in app.user_middleware] == [GZipMiddleware, RequestGuard]
    assert app.user_middleware[1].kwargs == {"front_end": front_end}


def test_too_late_is_an_error(front_end: FrontEnd) -> None:
    from starlette.applications import Starlette

    app = Starlette()
    app.middleware_stack = app.build_middleware_stack()
    with pytest.raises(RuntimeError) as late:
        install(app, front_end)
    told = "the request guard must be installed before the application starts"
    assert str(late.value) == told and app.user_middleware == []


class Speaker:
    """Begins with 200, says its chunks, and fails with its error, if any, in a module of a name."""

    def __init__(
        self,
        chunks: list[bytes],
        error: Exception | None = None,
        module: str = "sgl_sparsekv.serving.rules",
    ) -> None:
        self.chunks = chunks
        self.error = error
        self.names: dict[str, Any] = {"__name__": module}
        exec("def fail(error): raise error", self.names)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if self.error is not None:
            self.names["fail"](self.error)
        await send({"type": "http.response.body", "body": b""})


REFUSED = b'data: {"error":{"message":"n must be less","type":"x","code":400}}\n\n'


ABORTED = (
    b'data: {"text":"","meta_info":{"id":"r","finish_reason":{"type":"abort",'
    b'"message":"n must be less","status_code":400,"err_type":"BadRequestError"}}}\n\n'
)


@pytest.mark.parametrize("first", [REFUSED, ABORTED])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/api/chat", "/v1/messages"])
def test_a_stream_that_begins_with_a_refusal_is_one(
    front_end: FrontEnd, path: str, first: bytes
) -> None:
    speaker = Speaker([first, b"data: [DONE]\n\n"])
    status, answer = call(RequestGuard(speaker, front_end), path, {})
    assert status == 400 and "n must be less" in str(json.loads(answer))


@pytest.mark.parametrize("path", ["/generate", "/v1/score", "/api/generate"])
@pytest.mark.parametrize(
    "module",
    ["sgl_sparsekv.serving.rules", "sglang.srt.managers.io_struct", "sglang.srt.sampling.x"],
)
def test_a_mistake_of_the_client_is_a_refusal_on_every_route(
    front_end: FrontEnd, path: str, module: str
) -> None:
    speaker = Speaker([], ValueError("top_k must be less"), module)
    status, answer = call(RequestGuard(speaker, front_end), path, {})
    assert status == 400 and "top_k must be less" in str(json.loads(answer))


def test_a_mistake_without_a_text_is_told_by_its_kind(front_end: FrontEnd) -> None:
    status, answer = call(RequestGuard(Speaker([], ValueError()), front_end), "/generate", {})
    assert status == 400 and json.loads(answer)["error"]["message"] == "ValueError"


def event(code: Any, text: Any = "no memory") -> bytes:
    return b"data: " + orjson.dumps({"error": {"message": text, "code": code}}) + b"\n\n"


def abort(reason: Any) -> bytes:
    return b"data: " + orjson.dumps({"meta_info": {"finish_reason": reason}}) + b"\n\n"


@pytest.mark.parametrize(
    ("first", "status", "kind"),
    [
        (event(400), 400, "BadRequestError"),
        (event(499), 499, "BadRequestError"),
        (event(500), 500, "InternalServerError"),
        (event(599), 599, "InternalServerError"),
        (
            abort({"type": "abort", "message": "no memory", "status_code": 503}), 503,
            "InternalServerError",
        ),
    ],
)  # fmt: skip
def test_a_refusal_keeps_its_status(
    front_end: FrontEnd, first: bytes, status: int, kind: str
) -> None:
    """Nothing of the stream that it begins is sent on."""
    speaker = Speaker([first, b"data: more\n\n"])
    head, body = sent_by(RequestGuard(speaker, front_end), "/v1/completions", {})
    told = json.loads(body["body"])
    assert (head["status"], told["code"], told["type"]) == (status, status, kind)
    assert told["message"] == "no memory"


@pytest.mark.parametrize(
    "first",
    [
        event(399), event(600), event("400"), event(None), b'data: {"error":{"code":400}}\n\n',
        b'data: {"error":{"message":"x","code":400', b'data: {"error":[]}\n\n',
        b'data: {"error":{},"odd":1}\n\n', b'data: {"error":null,"meta_info":{}}\n\n',
        abort({"type": "abort", "message": "x"}), abort({"type": "stop"}),
        b'[{"finish_reason":{"type":"abort"}}]',
        b'event: x\ndata: {"error":{"message":"x","code":400}}\n\n',
    ],
)  # fmt: skip
def test_a_first_event_that_is_no_refusal_passes(front_end: FrontEnd, first: bytes) -> None:
    speaker = Speaker([first, b"more"])
    messages = sent_by(RequestGuard(speaker, front_end), "/generate", {})
    assert [message.get("body") for message in messages] == [None, first, b"more", b""]
    assert messages[0] == {"type": "http.response.start", "status": 200, "headers": []}
    assert [message.get("more_body") for message in messages] == [None, True, True, None]


def test_an_answer_that_is_an_error_already_is_not_read(front_end: FrontEnd) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": REFUSED})

    assert call(RequestGuard(refuse, front_end), "/generate", {}) == (422, REFUSED)


@pytest.mark.parametrize("module", ["sglang.srt.entrypoints.ollama.serving", "json.decoder", "x"])
def test_a_mistake_of_the_server_is_none_of_the_client(front_end: FrontEnd, module: str) -> None:
    speaker = Speaker([], ValueError("too many values to unpack"), module)
    with pytest.raises(ValueError, match="too many values"):
        call(RequestGuard(speaker, front_end), "/api/chat", {})


def test_an_error_behind_the_first_bytes_is_not_swallowed(front_end: FrontEnd) -> None:
    speaker = Speaker([b"data: one\n\n"], ValueError("late"))
    with pytest.raises(ValueError, match="late"):
        call(RequestGuard(speaker, front_end), "/generate", {})


@pytest.mark.parametrize("body", [[], 5, {"response_format": 5}, {"reasoning": {"effort": 5}}])
def test_a_body_that_sglang_fails_to_read_is_a_refusal(front_end: FrontEnd, body: Any) -> None:
    from fastapi import FastAPI
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(request: ChatCompletionRequest) -> str:
        return request.model

    chat.__annotations__["request"] = ChatCompletionRequest
    scope_headers = [(b"content-type", b"application/json")]
    install(app, front_end)
    status, answer = call(app, "/v1/chat/completions", body, headers=scope_headers)
    assert 400 <= status < 500, answer


def test_a_mistake_of_ours_is_not_the_clients(front_end: FrontEnd) -> None:
    with pytest.raises(KeyError):
        call(RequestGuard(Speaker([], KeyError("x")), front_end), "/generate", {})


@pytest.mark.parametrize("first", [b'data: {"text":"a"}\n\n', b'data: {"error":"odd"}\n\n', b""])
def test_other_streams_pass_byte_for_byte(front_end: FrontEnd, first: bytes) -> None:
    speaker = Speaker([first, REFUSED])
    assert call(RequestGuard(speaker, front_end), "/generate", {}) == (200, first + REFUSED)


def test_a_name_of_ours_is_found_where_two_parts_meet(app: RequestGuard) -> None:
    body = json.dumps({"text": "x" * 77, "SparseKV": {}}).encode()
    for size in range(1, len(body), 7):
        assert call(app, "/generate", body, size=size)[0] == 400
