"""ASGI middleware of the generation routes.

It answers 400 to a request whose options would be lost, and sees that a refusal is a 400 on every
route: SGLang tells it inside a stream that has begun with 200, or not at all where a route forgets
what is the client's mistake. So the head of an answer is held back until its first
bytes are there. Everything else passes untouched.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from traceback import walk_tb
from typing import Any

import orjson

from ..config import KV_COMPRESS_FIELDS
from . import placement
from .front_end import FrontEnd

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

MAX_BODY = 64 << 20
"""Larger bodies pass unparsed; what they carry in the right place is still verified."""
NATIVE = "/generate"
VERTEX = "/vertex_generate"
OPENAI = ("/v1/completions", "/v1/chat/completions", "/invocations")
WITHOUT_OPTIONS = (
    *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/generate"),
    *("/v1/score", "/v1/decisions", "/v1/systemone", "/v1/embeddings", "/v1/classify"),
    *("/v1/rerank", "/encode", "/classify"),
)
ROUTES = (NATIVE, VERTEX, *OPENAI, *WITHOUT_OPTIONS)
SCORES_OWN = ("token_indices_to_pool", "multi_item_delimiter_indices")
"""Fields that /v1/score makes for itself: beside other requests they end the scheduler."""
_NAMES = ("sparse", "custom_params", "health_check", *SCORES_OWN, *KV_COMPRESS_FIELDS)
_SEARCHED = tuple(name.encode() for name in _NAMES)
_OVERLAP = max(map(len, _SEARCHED)) - 1
_ERROR_EVENT = b'data: {"error":'
_READER = "fastapi.dependencies.utils"
_CHECKS = ("sgl_sparsekv.", "sglang.srt.managers.", "sglang.srt.sampling.")
"""Modules in which a ValueError states a rule."""
_ABORT = b'"finish_reason":{"type":"abort"'


class RequestGuard:
    """Checks a request's JSON before the application sees it, and the head of its answer."""

    def __init__(self, app: App, front_end: FrontEnd) -> None:
        """Wrap `app`."""
        self.app = app
        self.front_end = front_end

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        route = _route(scope)
        if route is None:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        refusal = self._refusal(route, body) if body is not None else None
        if refusal is not None:
            self.front_end.count_refusal(refusal)
            await _answer(send, route, refusal)
            return
        answer = HeldAnswer(send, route)
        try:
            await self.app(scope, _replay(messages, receive), answer.send)
        except Exception as error:
            if answer.begun or not _is_clients(error):
                raise
            await _answer(send, route, str(error) or type(error).__name__)

    def _refusal(self, route: str, body: bytes) -> str | None:
        """Why the request is refused, or None."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None  # SGLang's own answer names the place
        try:
            check_body(route, parsed)
        except ValueError as error:
            return str(error)
        return None


class HeldAnswer:
    """Sends an answer on; its head goes with the first bytes, as these may be a refusal."""

    def __init__(self, send: Send, route: str) -> None:
        self._send = send
        self._route = route
        self._head: Message | None = None
        self._refused = False
        self.begun = False

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if message["type"] == "http.response.start":
            self._head = message
        elif self._refused:
            return
        elif self._head is None:
            await self._send(message)
        else:
            await self._begin(self._head, message)
            self._head = None

    async def _begin(self, head: Message, first: Message) -> None:
        self.begun = True
        refusal = _refusal_in(first.get("body", b"")) if head["status"] == 200 else None
        if refusal is None:
            await self._send(head)
            await self._send(first)
        else:
            self._refused = True
            await _answer(self._send, self._route, *refusal)


def _is_clients(error: Exception) -> bool:
    """Whether an error is a mistake of the client.

    A ValueError is, by SGLang's own convention, where requests are checked: in our rules, and in
    what SGLang makes of a request. So is whatever fails while FastAPI reads the body: SGLang's
    models look into shapes that they have not checked. Any other is a mistake of the server.
    """
    modules = [str(f.f_globals.get("__name__")) for f, _ in walk_tb(error.__traceback__)]
    if _READER in modules:
        return True
    return isinstance(error, ValueError) and modules[-1].startswith(_CHECKS)


def _refusal_in(event: bytes) -> tuple[str, int] | None:
    """Text and status of a stream's first event, if it is an error or an abort."""
    if not event.startswith(_ERROR_EVENT) and _ABORT not in event:
        return None
    try:
        told = orjson.loads(event.removeprefix(b"data: "))
        error = told.get("error") or told["meta_info"]["finish_reason"]
        text, status = error["message"], error.get("code") or error["status_code"]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    return (text, status) if isinstance(status, int) and 400 <= status < 600 else None


def check_body(route: str, body: object) -> None:
    """Check the parsed body of a route.

    Raises:
        ValueError: an option is misplaced, or an id is one of SGLang's own.
    """
    if not isinstance(body, dict):
        return
    if route == NATIVE:
        placement.check_native(body)
        _check_own(body)
    elif route == VERTEX:
        placement.check_vertex(body)
        _check_own(body.get("parameters"))
    elif route in OPENAI:
        placement.check_openai(body)
    else:
        placement.check_other(body, route)


def _check_own(body: object) -> None:
    """What SGLang keeps to itself: names of health checks, which it drops when it is busy."""
    if not isinstance(body, dict):
        return
    given = body.get("rid")
    for rid in given if isinstance(given, list) else [given]:
        if isinstance(rid, str) and rid.startswith("HEALTH_CHECK"):
            raise ValueError(f"rid must not start with HEALTH_CHECK, got {rid[:60]!r}")
    for name in SCORES_OWN:
        if body.get(name) is not None:
            raise ValueError(f"{name} must be left out: /v1/score makes it")


def install(app: Any, front_end: FrontEnd) -> None:
    """Put the guard innermost: behind authentication, decompression and CORS.

    Raises:
        RuntimeError: the application has already started.
    """
    from starlette.middleware import Middleware

    if app.middleware_stack is not None:
        raise RuntimeError("the request guard must be installed before the application starts")
    kept = [entry for entry in app.user_middleware if entry.cls is not RequestGuard]
    app.user_middleware = [*kept, Middleware(RequestGuard, front_end=front_end)]


def _route(scope: Any) -> str | None:
    """The guarded route of a connection, or None."""
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
        return None
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path if path in ROUTES else None


async def _read(receive: Receive) -> tuple[list[Message], bytes | None]:
    """Messages read so far, and the whole body if it may concern us; None otherwise.

    Each part is searched as it comes, so that no long body holds up the event loop.
    """
    messages: list[Message] = []
    size, found, before = 0, False, b""
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        part: bytes = message.get("body", b"")
        size += len(part)
        if not found:
            lowered = (before + part).lower()
            found = any(word in lowered for word in _SEARCHED)
            before = lowered[-_OVERLAP:]
        if not message.get("more_body", False):
            break
        if size > MAX_BODY:
            return messages, None
    if not found or size > MAX_BODY:
        return messages, None
    return messages, b"".join(entry.get("body", b"") for entry in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A receive channel that hands out what was read, then what still comes."""
    messages.reverse()

    async def next_message() -> Message:
        # Popped, so that the body is not held twice while the request runs.
        return messages.pop() if messages else await receive()

    return next_message


async def _answer(send: Send, route: str, text: str, status: int = 400) -> None:
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    error: dict[str, Any] = {"message": text, "type": kind, "param": None, "code": status}
    content: dict[str, Any] = {"object": "error", **error}
    if route in (NATIVE, VERTEX):
        content = {"error": error}
    elif route.startswith("/v1/messages"):
        own = {"type": "invalid_request_error", "message": text}
        content = {"type": "error", "error": own}
    body = orjson.dumps(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
