"""One prompt to one server, streamed: what it says, and when each token arrives."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..answer import RequestFailed

TIMEOUT = 1800.0
"""Seconds between two tokens, at most; a prefill may lie between."""


@dataclass(frozen=True)
class Saying:
    """What came back.

    Attributes:
        ids: tokens said.
        text: what they spell.
        cached_tokens: tokens of the prompt that the radix cache had.
        arrivals: when (seconds) how many tokens were there, the first token first.
        report: the server's `sparsekv` echo; None from a server without our backend.
        pieces: what each token spells; together they are the text.
    """

    ids: tuple[int, ...]
    text: str
    cached_tokens: int
    arrivals: tuple[tuple[float, int], ...]
    report: dict[str, Any] | None
    pieces: tuple[str, ...] = ()

    def split(self, place: int) -> tuple[str, str, str]:
        """The text before a token, that token, and what follows it; "" for what is not there."""
        join = "".join
        return (
            join(self.pieces[:place]),
            join(self.pieces[place : place + 1]),
            join(self.pieces[place + 1 :]),
        )


def say(url: str, ids: list[int], tokens: int, options: dict[str, Any] | None = None) -> Saying:
    """Ask for so many greedy tokens; `options` are ours, None for a server without our backend.

    Raises:
        RequestFailed: the server refused, or went away.
    """
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0}
    if options is not None:
        sampling["custom_params"] = {"sparsekv": options}
    arrivals, last = [], dict[str, Any]()
    try:
        for last in _events(url, {"input_ids": ids, "sampling_params": sampling, "stream": True}):
            arrivals.append((time.perf_counter(), int(last["meta_info"]["completion_tokens"])))
    except (OSError, ValueError, KeyError) as error:
        raise RequestFailed(f"the server at {url} did not answer: {error}") from error
    if not last:
        raise RequestFailed(f"the server at {url} said nothing")
    meta = last["meta_info"]
    return Saying(
        tuple(last["output_ids"]),
        last["text"],
        int(meta["cached_tokens"]),
        tuple(arrivals),
        meta.get("sparsekv"),
    )


def _events(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Server-sent events of `/generate`; each holds all that was said so far."""
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            for line in answer:
                data = line.decode().strip().removeprefix("data: ")
                if data and data != "[DONE]":
                    event = json.loads(data)
                    if "error" in event:
                        raise ValueError(event["error"])
                    yield event
    except urllib.error.HTTPError as error:
        said = " ".join(error.read().decode(errors="replace").split())
        raise OSError(f"HTTP {error.code}, {said[:300]}") from error
