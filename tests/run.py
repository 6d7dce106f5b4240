"""Every test: parts of this folder in processes of their own, four at a time.

    python tests/run.py [PYTEST'S ARGUMENTS]

One part waits for servers most of its time, another computes. What a part says is shown when it has
ended. Exit status 1 if a test failed.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import NoReturn

TESTS = Path(__file__).parent
LOGS = TESTS.parent / "build" / "tests"
AT_ONCE = 4
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GC_THRESHOLD": "100000 50 100"}
"""Of every process: two thread pools on few cores cost far more than they give, and collecting
garbage takes a quarter of the time in which SGLang starts."""
NOTHING_FOUND = 5
"""Pytest's exit status where a selection (`-k`) leaves nothing of a part."""


@dataclass(frozen=True)
class Part:
    """Folders that one process tests.

    Attributes:
        name: of its log.
        folders: below this one; a folder that another part names is that part's.
    """

    name: str
    folders: tuple[str, ...]


PARTS = (
    Part("documents", ("docs", "package")),
    Part("kernels", ("kernels",)),
    Part("servers", ("server",)),
    Part("metadata", ("page_metadata", "segments", "selection")),
    Part("compiled", ("kernels/compiled",)),
    Part("tools", ("bench", "evaluation", "models", "report")),
    Part("backend", ("backend",)),
    Part("rest", (".",)),
    Part("alone", ("server/alone",)),
)
"""The longest first, so that the two sides end together."""


def words(part: Part, parts: tuple[Part, ...] = PARTS) -> list[str]:
    """Pytest's arguments for a part: its folders, and those inside them that are not its own."""
    own = [TESTS / folder for folder in part.folders]
    others = [TESTS / folder for each in parts if each is not part for folder in each.folders]
    inside = [o for o in others if any(mine in o.parents for mine in own)]
    return [*map(str, own), *(f"--ignore={folder}" for folder in inside)]


class Runner:
    """Runs parts; ends what it started when it is told to stop."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = ["--durations=15", *arguments]
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped, self._lock = Event(), Lock()

    def run(self, part: Part) -> bool:
        """Test a part and show what it said; whether all is well."""
        log, start = LOGS / f"{part.name}.log", time.monotonic()
        command = [sys.executable, "-m", "pytest", *words(part), *self._arguments]
        with log.open("wb") as file, self._lock:
            if self._stopped.is_set():
                return False
            env = {**os.environ, **ENVIRONMENT}
            child = subprocess.Popen(
                command, cwd=TESTS.parent, env=env, stdout=file, stderr=subprocess.STDOUT
            )
            self._running.append(child)
        status = child.wait()
        with self._lock:
            sys.stdout.write(log.read_text(errors="replace"))
            print(f"tests: {part.name} took {time.monotonic() - start:.0f} s", flush=True)
        return status in (0, NOTHING_FOUND)

    def stop(self) -> None:
        """End every part with its servers, and start no other."""
        self._stopped.set()
        for child in self._running:
            child.terminate()


def main(arguments: list[str]) -> int:
    """Run every part; 0 if all tests passed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    start, runner = time.monotonic(), Runner(arguments)
    print(f"tests: {', '.join(part.name for part in PARTS)}; logs are in {LOGS}", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            passed = list(pool.map(runner.run, PARTS))
        except KeyboardInterrupt:
            runner.stop()
            return 130
    print(f"tests: {time.monotonic() - start:.0f} s in all")
    return 0 if all(passed) else 1


def _interrupt(*_: object) -> NoReturn:
    """A termination ends the tests as Ctrl-C does: with what they started."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
