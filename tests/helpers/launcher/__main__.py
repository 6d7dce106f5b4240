"""The process that has SGLang imported: forks and reports, as it is told.

    python -m tests.helpers.launcher

What runs in a fork is `prepare_server_args` and `run_server` as `python -m sglang.launch_server`
calls them, or a script; its schedulers are forked as well, where SGLang would spawn them. Reads an
order per line of its input, `{"fork": [script or null, arguments, log, environment]}` or
`{"poll": pid}`, and answers each with a line: a pid, or an exit status and null before there is
one.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from tests.helpers.launcher import MARK


def main() -> None:
    """Import SGLang, then follow orders until the input ends."""
    from sglang import launch_server  # noqa: F401
    from sglang.srt.entrypoints import http_server  # noqa: F401
    from sglang.srt.model_loader import weight_utils
    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.plugins import load_plugins

    load_plugins()
    ModelRegistry.get_supported_archs()
    # Made up weights wide enough that attention decides what comes next.
    weight_utils.initialize_dummy_weights.__defaults__ = (-0.5, 0.5, 1234)
    running: set[int] = set()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            if "fork" in order:
                pid = fork(*order["fork"])
                running.add(pid)
                answer: int | None = pid
            else:
                answer = status(order["poll"])
                if answer is not None:
                    running.remove(order["poll"])
            print(MARK + json.dumps(answer), flush=True)
    finally:
        for pid in running:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def fork(script: str | None, arguments: list[str], log: str, environment: dict[str, str]) -> int:
    """Start a server, or a script, in a session of its own; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.environ.update(environment)
        _begin(serve if script is None else partial(run, script), arguments, Path(log))
    return pid


def status(pid: int) -> int | None:
    """How a server ended, or None while it runs."""
    done, found = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(found) if done else None


def serve(arguments: list[str]) -> None:
    """What `python -m sglang.launch_server` does."""
    from sglang import launch_server
    from sglang.srt.environ import envs
    from sglang.srt.managers import scheduler

    for name in [name for name in vars(scheduler) if name.startswith("TEST_RETRACT")]:
        setattr(scheduler, name, getattr(envs, f"SGLANG_{name}").get())  # read at import
    launch_server.run_server(launch_server.prepare_server_args(arguments))


def run(script: str, arguments: list[str]) -> None:
    """What `python SCRIPT` does."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def _begin(program: Callable[[list[str]], None], arguments: list[str], log: Path) -> None:
    """Be the process that a program runs in; never returns."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    multiprocessing.set_start_method("fork", force=True)
    torch.cuda._is_in_bad_fork = lambda: False  # type: ignore[assignment]
    if not torch.cuda.is_available():
        torch._C._cuda_init = no_driver  # which would only say that this is a fork
    multiprocessing.set_start_method = lambda *_args, **_kwargs: None  # type: ignore[assignment]
    os.chdir(log.parent)
    ended = 1
    try:
        program(arguments)
        ended = 0
    except SystemExit as exit_:
        ended = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:  # what Python prints when a program ends so
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)


def no_driver() -> None:
    """What torch says in a process that was not forked."""
    raise RuntimeError("Found no NVIDIA driver on your system.")


if __name__ == "__main__":
    main()
    os._exit(0)  # what torch tidies up first takes seconds
