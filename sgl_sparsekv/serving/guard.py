"""ASGI middleware that answers 400 to a request whose options would be lost or are wrong.

It reads bodies of generation routes only, and parses only those that contain a key of ours, so
other requests cost one search of their bytes. Responses pass untouched.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from . import placement
from .front_end import FrontEnd
from .requests import (
    check_custom_params,
    check_options,
    check_token_ids,
    check_top_logprobs,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

MAX_BODY = 64 << 20
"""Larger bodies pass unparsed; what they carry in the right place is still verified."""
NATIVE = "/generate"
OPENAI = ("/v1/completions", "/v1/chat/completions", "/invocations")
WITHOUT_OPTIONS = ("/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
ROUTES = (NATIVE, *OPENAI, *WITHOUT_OPTIONS)


class RequestGuard:
    """Checks a request's JSON before the application sees it."""

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
        if refusal is None:
            await self.app(scope, _replay(messages, receive), send)
        else:
            self.front_end.count_refusal(refusal)
            await _answer(send, route, refusal)

    def _refusal(self, route: str, body: bytes) -> str | None:
        """Why the request is refused, or None."""
        if not _may_concern_us(route, body):
            return None
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None  # SGLang's own answer names the place
        if not isinstance(parsed, dict):
            return None
        try:
            check_body(route, parsed, self.front_end)
        except ValueError as error:
            return str(error)
        return None


def check_body(route: str, body: dict[str, Any], front_end: FrontEnd) -> None:
    """Check the parsed body of a route.

    Raises:
        ValueError: an option is misplaced or wrong, or a token id is not in the vocabulary.
    """
    if route == NATIVE:
        placement.check_native(body)
        check_options(body.get("sampling_params"), front_end.options)
        # SGLang answers 200 to a streamed request and puts its error into the stream.
        if body.get("stream"):
            media = [body.get(f"{kind}_data") for kind in ("image", "video", "audio")]
            check_token_ids("input_ids", body.get("input_ids"), front_end, media)
            check_top_logprobs(body.get("top_logprobs_num"), front_end)
    elif route in OPENAI:
        placement.check_openai(body)
        check_custom_params(body.get("custom_params"), front_end.options)
    else:
        placement.check_other(body, route)


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


def _may_concern_us(route: str, body: bytes) -> bool:
    if b"sparse" in body.lower() or b"custom_params" in body:
        return True
    if route != NATIVE or b'"stream"' not in body:
        return False
    return b'"input_ids"' in body or b'"top_logprobs_num"' in body


async def _read(receive: Receive) -> tuple[list[Message], bytes | None]:
    """Messages read so far, and the whole body; None when it is too large or was cut off."""
    messages: list[Message] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            return messages, None
        if not message.get("more_body", False):
            return messages, b"".join(entry.get("body", b"") for entry in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A receive channel that hands out what was read, then what still comes."""
    messages.reverse()

    async def next_message() -> Message:
        # Popped, so that the body is not held twice while the request runs.
        return messages.pop() if messages else await receive()

    return next_message


async def _answer(send: Send, route: str, text: str) -> None:
    error: dict[str, Any] = {"message": text, "type": "BadRequestError", "param": None, "code": 400}
    content = {"error": error} if route == NATIVE else {"object": "error", **error}
    body = orjson.dumps(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
