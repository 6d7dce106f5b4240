"""SGLang servers as child processes: started together, waited for, and always ended."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import SparseKVError
from .progress import Progress
from .signals import terminated_is_interrupted

HOST = "127.0.0.1"
SERVER_PORTS = range(12_000, 32_000)
"""Below those that systems give to what goes out."""
_GRACE_SECONDS = 8.0
_ERROR_WORDS = ("Error", "error:", "Exception", "Killed", "refused")


class ServerFailed(SparseKVError):
    """A server process ended, or was not ready in time."""


@dataclass(frozen=True)
class ServerSpec:
    """One server to start.

    Attributes:
        name: how it is called in messages; its log is `<name>.log`.
        flags: arguments of `python -m sglang.launch_server`, without host and port.
        env: environment variables on top of ours.
    """

    name: str
    flags: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


class ServerProcess:
    """A running `sglang.launch_server` and the processes it starts."""

    def __init__(self, spec: ServerSpec, folder: Path) -> None:
        """Start it; `ready` tells when it can be used."""
        self.name = spec.name
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.log = folder / f"{spec.name}.log"
        address = ("--host", HOST, "--port", str(self.port))
        self.command = (sys.executable, "-m", "sglang.launch_server", *spec.flags, *address)
        self._process = self._begin(dict(spec.env))

    def _begin(self, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """The process of the command, with variables on top of ours."""
        with self.log.open("w") as log:
            # A session of its own: one signal reaches its scheduler and detokenizer as well.
            return subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**_environment(), **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also its process group."""
        return self._process.pid

    def ready(self) -> bool:
        """Whether it answers.

        Raises:
            ServerFailed: it has ended.
        """
        self.check()
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def check(self) -> None:
        """Complain if it has ended.

        Raises:
            ServerFailed: with its last words.
        """
        code = self._process.poll()
        if code is not None:
            raise ServerFailed(
                f"the {self.name} server ended with exit code {code}: {last_words(self.log)} "
                f"(its log is {self.log})"
            )

    def stop(self) -> None:
        """End it and what it started; harmless when it has ended."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        # Children that outlived their parent are still in the group.
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


@contextmanager
def serve(
    specs: Sequence[ServerSpec], folder: Path, progress: Progress, timeout: float = 900.0
) -> Iterator[dict[str, ServerProcess]]:
    """Start servers side by side and wait until all answer; end them on the way out.

    Args:
        specs: what to start.
        folder: where logs go.
        progress: told what is being waited for.
        timeout: seconds until giving up on a start.

    Raises:
        ServerFailed: one ended or was not ready in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running: dict[str, ServerProcess] = {}
    with terminated_is_interrupted():
        try:
            for spec in specs:
                running[spec.name] = ServerProcess(spec, folder)
            _wait(list(running.values()), progress, timeout)
            yield running
        finally:
            for server in running.values():
                server.stop()


def _wait(servers: Sequence[ServerProcess], progress: Progress, timeout: float) -> None:
    start = time.monotonic()
    waiting = list(servers)
    progress.say(f"starting {_listed(waiting)} (imports take most of a minute)")
    while waiting:
        ready = [server for server in waiting if server.ready()]
        waiting = [server for server in waiting if server not in ready]
        for server in ready:
            progress.say(f"{server.name} is ready after {time.monotonic() - start:.0f} s")
        if waiting and time.monotonic() - start > timeout:
            raise ServerFailed(
                f"the {waiting[0].name} server was not ready after {timeout:.0f} s: "
                f"{last_words(waiting[0].log)} (its log is {waiting[0].log})"
            )
        if waiting:
            progress.wait(f"waiting for {_listed(waiting)}: {stage(waiting[0].log)}")
            time.sleep(0.5)


def free_port() -> int:
    """A loopback port that nobody listens on now, and that no connection is given by chance.

    What goes out is given ports of the system's own range; a server that binds one of them may find
    it taken by then.
    """
    while True:
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def last_words(log: Path) -> str:
    """The line of a log that says best why a process ended."""
    lines = _lines(log)
    telling = [line for line in lines if any(word in line for word in _ERROR_WORDS)]
    return (telling or lines or ["it wrote nothing"])[-1][:300]


def stage(log: Path, limit: int = 70) -> str:
    """What a starting server is doing, by its log."""
    said = [line for line in _lines(log) if line.startswith("[20")]
    return said[-1].partition("] ")[2][:limit] if said else "importing SGLang"


def _lines(log: Path, tail: int = 65_536) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - tail))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet}


def _listed(servers: Sequence[ServerProcess]) -> str:
    return " and ".join(server.name for server in servers)
