"""`sglang.benchmark.serving`, imported once and forked for each command line.

    python -m bench.serve.worker

Importing that tool takes longer than most points of a sweep on a CPU. Each command line still runs
in a process of its own, by the tool's own `cli_main`. Reads a job per line of its input, answers a
line for each.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

READY = "@ready"
MODULE = "sglang.benchmark.serving"


def main() -> None:
    """Import the tool, say so, then run jobs until the input ends."""
    from sglang.benchmark import serving

    print(READY, flush=True)
    for line in sys.stdin:
        print(f"@{_run(serving, json.loads(line))}", flush=True)


def _run(serving: Any, job: dict[str, Any]) -> int:
    """Status of one run; -9 if it took longer than the job's `timeout` seconds."""
    pid = os.fork()
    if pid == 0:
        _child(serving, job["arguments"], Path(job["log"]))
    deadline = time.monotonic() + job["timeout"]
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return -9
        time.sleep(0.05)


def _child(serving: Any, arguments: list[str], log: Path) -> None:
    """Never returns."""
    status = 1
    try:
        sys.stdout = sys.stderr = file = log.open("w", buffering=1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        sys.argv = [MODULE, *arguments]
        serving.cli_main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
