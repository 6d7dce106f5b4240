"""SGLang's own launcher, imported once and forked for each server.

    python -m tests.start.launcher

Importing SGLang takes most of a minute, a server of a tiny model three seconds. What runs in the
fork is `prepare_server_args` and `run_server` as `python -m sglang.launch_server` calls them; its
schedulers are forked as well, where SGLang would spawn them. Reads a `Job` per line of its input
and answers an `Outcome` per line.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

POLL = 0.1


@dataclass(frozen=True)
class Job:
    """One server to start and what to ask it.

    Attributes:
        arguments: of the launcher, port included.
        port: where it will answer.
        log: file for what it says.
        requests: bodies for `/generate`, one after the other.
        ready_within: seconds.
        answer_within: seconds, for each request.
        headers: of each request.
    """

    arguments: list[str]
    port: int
    log: str
    requests: list[dict[str, Any]]
    ready_within: float = 90.0
    answer_within: float = 60.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        status: of the launcher's process; None when it ran until it was ended.
        ready: whether the server said that it is.
        answers: one per request; a string says what went wrong instead.
        seconds: until the end.
    """

    status: int | None
    ready: bool
    answers: list[Any]
    seconds: float


def main() -> None:
    """Import SGLang, then run jobs until the input ends."""
    from sglang import launch_server
    from sglang.srt.entrypoints import http_server  # noqa: F401
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.plugins import load_plugins

    load_plugins()
    ModelRegistry.get_supported_archs()
    print("@ready", flush=True)
    for line in sys.stdin:
        outcome = run(launch_server, Job(**json.loads(line)))
        print("@" + json.dumps(asdict(outcome)), flush=True)


def run(launch_server: Any, job: Job) -> Outcome:
    """Start one server, ask it, end it with all it started."""
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _serve(launch_server, job)
    status, ready = _wait(pid, job)
    answers: list[Any] = []
    if ready:
        for body in job.requests:
            answers.append(_ask(job, body))
            if isinstance(answers[-1], str):
                break
        status = _status(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return Outcome(status, ready, answers, round(time.monotonic() - begin, 2))


def _serve(launch_server: Any, job: Job) -> None:
    """The launcher; never returns."""
    os.setsid()
    file = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    multiprocessing.set_start_method("fork", force=True)
    torch.cuda._is_in_bad_fork = lambda: False  # type: ignore[assignment]
    multiprocessing.set_start_method = lambda *_args, **_kwargs: None  # type: ignore[assignment]
    os.chdir(Path(job.log).parent)
    status = 1
    try:
        launch_server.run_server(launch_server.prepare_server_args(job.arguments))
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # what Python prints when a program ends so
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, job: Job) -> tuple[int | None, bool]:
    deadline = time.monotonic() + job.ready_within
    while time.monotonic() < deadline:
        status = _status(pid)
        if status is not None:
            return status, False
        if _call(job, "/health", None, 5.0) == "":
            return None, True
        time.sleep(POLL)
    return None, False


def _status(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _ask(job: Job, body: dict[str, Any]) -> Any:
    text = _call(job, "/generate", body, job.answer_within)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _call(job: Job, path: str, body: dict[str, Any] | None, timeout: float) -> str:
    """The text of an answer, or words that are no JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{job.port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **job.headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}: {error.read().decode()[:300]}"
    except OSError as error:
        return f"no answer: {error}"


if __name__ == "__main__":
    main()
