"""Runs of `sglang.benchmark.serving`, and what each wrote."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.serve.worker import MODULE, READY
from sgl_sparsekv.errors import SparseKVError
from sgl_sparsekv.tooling.servers import last_words

TOO_LONG = -9
DROPPED = ("server_info", "itls", "generated_texts", "errors", "cached_tokens_details")


class PointFailed(SparseKVError):
    """A point could not be measured; says why in one sentence."""


class ServingTool:
    """A process that has the tool imported; use it in a `with` statement."""

    def __init__(self, folder: Path) -> None:
        """Start it; the import goes on while a server starts.

        Args:
            folder: where logs and the tool's own files go.
        """
        self._folder = folder
        self._runs = 0
        self._log = (folder / "tool.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.serve.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
        self._ready = False

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and what it runs."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def run(self, arguments: list[str], timeout: int) -> dict[str, Any]:
        """Run one command line.

        Args:
            arguments: of the tool, without the file it writes.
            timeout: seconds.

        Returns:
            The tool's own result, without what is long.

        Raises:
            PointFailed: it failed, took too long, or not every request was answered.
        """
        self.wait()
        self._runs += 1
        log = self._folder / f"tool-{self._runs}.log"
        output = log.with_suffix(".jsonl")
        job = {"arguments": [*arguments, "--output-file", str(output)], "log": str(log)}
        status = self._ask(json.dumps({**job, "timeout": timeout}))
        if status == TOO_LONG:
            raise PointFailed(f"{MODULE} took longer than {timeout} s (its log is {log})")
        if status or not output.exists():
            raise PointFailed(f"{MODULE} ended with {status}: {last_words(log)} (its log is {log})")
        return parse(output.read_text())

    def wait(self) -> None:
        """Until the tool is imported.

        Raises:
            PointFailed: it could not be.
        """
        if not self._ready:
            self._answer(READY)
            self._ready = True

    def _ask(self, job: str) -> int:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PointFailed(f"{MODULE} cannot be run: {error}") from None
        return int(self._answer("@")[1:])

    def _answer(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line.strip()
        self._log.flush()
        raise PointFailed(f"{MODULE} cannot be run: {last_words(Path(self._log.name))}")


def parse(text: str) -> dict[str, Any]:
    """The result that the tool wrote as a line of JSON.

    Raises:
        PointFailed: a request was not answered.
    """
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    sent = len(found["errors"])
    if found["completed"] < sent:
        reason = next((error for error in found["errors"] if error), "no reason given")
        told = reason.strip().splitlines()[-1][:200]
        raise PointFailed(f"{found['completed']} of {sent} requests were answered: {told}")
    # The rate of requests that are sent when others end is infinite, which JSON cannot say.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in found.items()
        if key not in DROPPED
    }
