"""SGLang's own launcher, imported once and forked for each server.

Each process of a server that is started by its command imports SGLang, which takes most of a
minute; a fork of one that has it imported serves a tiny model after three seconds. What is read
while SGLang is imported is the same for all forks of a launcher.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

from sgl_sparsekv.tooling.servers import ServerProcess, ServerSpec

ROOT = Path(__file__).parents[3]
MARK = "@"
"""First letter of an answer; what imports say has another one."""
POLL = 0.1


class Launcher:
    """A process that has SGLang imported; use it in a `with` statement, or `stop` it."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start it; it is ready when the first fork is.

        Args:
            folder: for its log.
            environment: variables for it and all its forks.
        """
        self.folder = folder
        self._lock = Lock()
        with (folder / "launcher.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.launcher"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
            )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.stop()

    def fork(
        self, arguments: Iterable[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> "Forked":
        """A server with these arguments of `sglang.launch_server` and further variables."""
        wanted = [None, [*arguments], str(log), dict(environment or {})]
        return Forked(self, self.order({"fork": wanted}))

    def run(self, script: Path, *arguments: str, timeout: float = 300) -> str:
        """What a script says that is run in a fork, as `python SCRIPT ARGUMENTS` would run it.

        Raises:
            subprocess.TimeoutExpired: it goes on; it is ended.
        """
        log = self.folder / f"{script.stem}.log"
        running = Forked(self, self.order({"fork": [str(script), [*arguments], str(log), {}]}))
        try:
            status = running.wait(timeout)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
        said = log.read_text(errors="replace")
        assert status == 0, said[-6000:]
        return said

    def order(self, wanted: dict[str, Any]) -> Any:
        """What the process answers to an order."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(MARK):
                    return json.loads(line.removeprefix(MARK))
        raise AssertionError(f"the launcher ended: see {self.folder / 'launcher.log'}")

    def stop(self) -> None:
        """End it and what it has forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Forked:
    """A fork, watched as `subprocess.Popen` watches a process; it leads a group of its own."""

    def __init__(self, launcher: Launcher, pid: int) -> None:
        """Whose it is."""
        self.pid = pid
        self._launcher = launcher
        self._status: int | None = None

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        if self._status is None:
            self._status = self._launcher.order({"poll": self.pid})
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        begin = time.monotonic()
        while (status := self.poll()) is None:
            if timeout is not None and time.monotonic() - begin > timeout:
                raise subprocess.TimeoutExpired("a fork of SGLang's launcher", timeout)
            time.sleep(POLL)
        return status


class ForkedServer(ServerProcess):
    """A server that is such a fork."""

    def __init__(self, spec: ServerSpec, folder: Path, launcher: Launcher) -> None:
        """Start it; `ready` tells when it can be used."""
        self._launcher = launcher
        super().__init__(spec, folder)

    def stop(self) -> None:
        """End it and what it started, at once; harmless when it has ended."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _begin(self, environment: Mapping[str, str]) -> Any:
        _, _, _, *arguments = self.command  # Python, and the module that a fork has imported
        return self._launcher.fork(arguments, self.log, environment)


@contextmanager
def forked(launcher: Launcher) -> Iterator[None]:
    """Whoever starts servers with `tooling.servers.serve` gets forks."""
    server = partial(ForkedServer, launcher=launcher)
    with patch("sgl_sparsekv.tooling.servers.ServerProcess", server):
        yield
