"""One forked server from start to end: asked one request after the other, then ended."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sgl_sparsekv.tooling.servers import free_port
from tests.helpers.launcher import POLL, Forked, Launcher

from .asking import HEADERS

READY_WITHIN = 90.0
ANSWER_WITHIN = 60.0
"""Seconds for each request."""


@dataclass(frozen=True)
class Ended:
    """What came of a server.

    Attributes:
        status: of the launcher's process; None when it ran until it was ended.
        ready: whether the server said that it is.
        answers: one per request; a string says what went wrong instead.
        seconds: until the end.
        log: what it said.
    """

    status: int | None
    ready: bool
    answers: list[Any]
    seconds: float
    log: str


def run(
    launcher: Launcher,
    arguments: Iterable[str],
    bodies: Iterable[dict[str, Any]],
    ready_within: float = READY_WITHIN,
) -> Ended:
    """Start a server, send these bodies to `/generate`, end it with all it started."""
    begin, port = time.monotonic(), free_port()
    log = launcher.folder / f"server-{port}.log"
    server = launcher.fork((*arguments, "--port", str(port)), log)
    ready, answers = _ready(server, port, ready_within), list[Any]()
    for body in bodies if ready else ():
        answers.append(_ask(port, body))
        if isinstance(answers[-1], str):
            break
    status = server.poll()
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    said = log.read_text(errors="replace") if log.exists() else ""
    return Ended(status, ready, answers, round(time.monotonic() - begin, 2), said)


def _ready(server: Forked, port: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and server.poll() is None:
        if _call(port, "/health", None, 5.0) == "":
            return True
        time.sleep(POLL)
    return False


def _ask(port: int, body: dict[str, Any]) -> Any:
    text = _call(port, "/generate", body, ANSWER_WITHIN)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _call(port: int, path: str, body: dict[str, Any] | None, timeout: float) -> str:
    """The text of an answer, or words that are no JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **HEADERS},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}: {error.read().decode()[:300]}"
    except OSError as error:
        return f"no answer: {error}"
