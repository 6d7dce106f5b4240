"""A client for tests: asks questions, many at once, hangs up when told to."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from sgl_sparsekv.models.documents import Document, Question


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        prompt: text.
        expected: text that greedy decoding must give, or None when any answer will do.
        tokens: new tokens.
        options: sparsekv options, or None to send none.
        hang_up_after: chunks after which the client disconnects, or None.
        rid: request id, or None.
    """

    prompt: str
    expected: str | None
    tokens: int
    options: dict[str, Any] | None = None
    hang_up_after: int | None = None
    rid: str | None = None


def ask_for(
    document: Document, question: Question, options: dict[str, Any] | None = None, **more: Any
) -> Ask:
    """A question over a document, with the answer it must get."""
    tokens = len(question.answer_tokens)
    return Ask(document.prompt(question), question.answer, tokens, options, **more)


def body_of(ask: Ask, **more: Any) -> dict[str, Any]:
    """The JSON body for `/generate`."""
    sampling: dict[str, Any] = {
        "temperature": 0,
        "max_new_tokens": ask.tokens,
        "ignore_eos": True,
    }
    if ask.options is not None:
        sampling["custom_params"] = {"sparsekv": ask.options}
    body = {"text": ask.prompt, "sampling_params": sampling, **more}
    return body if ask.rid is None else {**body, "rid": ask.rid}


def get(url: str) -> Any:
    """GET as JSON, or as text."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def post(url: str, body: object, timeout: float = 300) -> tuple[int, Any]:
    """POST JSON; status and decoded answer, also of an error."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def generate(url: str, ask: Ask, **more: Any) -> dict[str, Any]:
    """One answer from `/generate`; anything but 200 fails the test."""
    status, answer = post(f"{url}/generate", body_of(ask, **more))
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def generate_all(
    url: str, asks: Iterable[Ask], concurrency: int = 16
) -> list[dict[str, Any] | None]:
    """Answers in the order of the questions; None where the client hung up."""
    return asyncio.run(_generate_all(url, list(asks), concurrency))


async def _generate_all(url: str, asks: list[Ask], concurrency: int) -> list[dict[str, Any] | None]:
    gate = asyncio.Semaphore(concurrency)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(ask: Ask) -> dict[str, Any] | None:
            async with gate:
                return await _one(session, url, ask)

        return await asyncio.gather(*(one(ask) for ask in asks))


async def _one(session: aiohttp.ClientSession, url: str, ask: Ask) -> dict[str, Any] | None:
    if ask.hang_up_after is None:
        async with session.post(f"{url}/generate", json=body_of(ask)) as answer:
            return {"status": answer.status, **(await answer.json())}
    async with session.post(f"{url}/generate", json=body_of(ask, stream=True)) as answer:
        seen = 0
        async for _ in answer.content:
            seen += 1
            if seen > ask.hang_up_after:
                break
    return None


def wrong_answers(
    asks: Iterable[Ask], answers: Iterable[dict[str, Any] | None]
) -> list[tuple[Any, ...]]:
    """Requests whose answer is not the expected one; those that hung up are not judged."""
    return [
        (ask.options, ask.expected, answer.get("text", answer), answer.get("meta_info"))
        for ask, answer in zip(asks, answers, strict=True)
        if answer is not None
        and (answer["status"] != 200 or ask.expected not in (None, answer["text"].strip()))
    ]


def metric(url: str, name: str, label: str = "") -> float:
    """Sum of a Prometheus series of ours over its labels; 0 when it was never written.

    Args:
        url: of the server.
        name: of the series, without the prefix.
        label: value of the only label; "" for all of them.
    """
    lines = str(get(f"{url}/metrics")).splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith((f"sparsekv:{name}{{", f"sparsekv:{name} "))
        and (not label or f'"{label}"' in line)
    )


def assert_whole(url: str) -> None:
    """The idle server holds no token and no metadata problem, and still answers."""
    status, answer = post(f"{url}/flush_cache", {})
    assert status == 200, answer
    assert metric(url, "stale_units_total") == 0
