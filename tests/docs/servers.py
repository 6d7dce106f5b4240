"""The servers that documents start, each line once, with a port and a cache of ours added."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers.fresh import environment
from helpers.launcher import Forked, Launcher

from sgl_sparsekv.backend.cpu_defaults import with_cpu_method
from sgl_sparsekv.tooling.servers import free_port, last_words

METHOD_OF_ANOTHER = Path(__file__).parents[1] / "helpers" / "random_pages"
SMALL = ("--max-total-tokens", "65536")
HERE = Path(sys.executable).parent
"""Programs of this environment."""
Start = Callable[[str, Path], "subprocess.Popen[bytes] | Forked"]


def same_server(line: str) -> tuple[str, ...]:
    """What a serve line asks for: its words, without options that are the default anyway."""
    words = shlex.split(line)
    pairs = zip(words, [*words[1:], ""], strict=True)
    defaults = {
        f"--sparsekv-{name.replace('_', '-')}": str(value)
        for name, value in with_cpu_method({}).as_dict().items()
    }
    skipped = [i for i, (flag, value) in enumerate(pairs) if defaults.get(flag) == value]
    return tuple(w for i, w in enumerate(words) if i not in skipped and i - 1 not in skipped)


def typed(line: str, log: Path, programs: Path) -> "subprocess.Popen[bytes]":
    """Start a serve line in a shell, in the folder of its log.

    Args:
        line: to type.
        log: of the server.
        programs: `bin` folder that `python` is taken from.
    """
    paths = {"PYTHONPATH": str(METHOD_OF_ANOTHER)}
    with log.open("w") as file:
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=log.parent,
            env={**environment(programs), **paths},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def forked(line: str, log: Path, launcher: Launcher) -> Forked:
    """Start a serve line's server in a process that has SGLang imported."""
    python, dash_m, module, *arguments = shlex.split(line)
    assert (python, dash_m, module) == ("python", "-m", "sglang.launch_server")
    return launcher.fork(arguments, log)


class DocumentedServer:
    """A serve line that runs as written, with an address and a small cache added.

    What a server takes by itself, half of the free memory, would leave the others little.
    """

    def __init__(self, line: str, folder: Path, start: Start) -> None:
        """Start it.

        Args:
            line: with its words resolved.
            folder: of its log; it runs there too.
            start: from line and log to a process that leads its group.
        """
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.line = line
        self.log = folder / f"{self.port}.log"
        added = ("--host", "127.0.0.1", "--port", str(self.port), *SMALL)
        self.process = start(f"{line} {' '.join(added)}", self.log)

    def wait(self, timeout: float = 600) -> "DocumentedServer":
        """Until it answers."""
        deadline = time.monotonic() + timeout
        while not self._answers():
            ended = self.process.poll()
            assert ended is None, f"{self.line}\nended with {ended}: {last_words(self.log)}"
            assert time.monotonic() < deadline, f"{self.line}\nis not ready after {timeout} s"
            time.sleep(0.5)
        return self

    def ask(self, body: str) -> dict[str, Any]:
        """The answer of `/generate` to a body, sent by curl."""
        sent = ("curl", "-s", f"http://{self.address}/generate", "-d", body)
        header = ("-H", "Content-Type: application/json")
        done = subprocess.run([*sent, *header], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert "meta_info" in answer, answer
        return answer

    def stop(self) -> None:
        """End it and what it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
