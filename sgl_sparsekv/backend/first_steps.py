"""The first steps of a server belong to its start: what ends them is told in one sentence, too.

SGLang finds out in its warm-up request that a model's code has no path on this device. That request
is a prefill and a few decode steps, and the server is ready behind it.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from .flags import exit_with, from_command_line, is_chosen
from .starting import TOLD, sentence, tell

FIRST = 2
"""Steps: a prefill and a decode."""


def run_in_one_line(original: Callable[..., None], scheduler: Any) -> None:
    """Around `Scheduler.run_event_loop`: an end in the first steps is one line, and exit `TOLD`.

    Where a controller stands between (`--dp-size`), it waits for SGLang's own signal.
    """
    try:
        original(scheduler)
    except Exception as error:
        args = scheduler.server_args
        late = scheduler.forward_ct > FIRST or args.dp_size > 1
        if late or not (is_chosen(args) and from_command_line(args)):
            raise
        tell(error)
        exit_with(sentence(error), TOLD)


def end_when_told(original: Callable[..., bool], watchdog: Any) -> bool:
    """Around `SubprocessWatchdog._check_processes`: the launcher ends like one that never began."""
    from sglang.srt.utils import kill_process_tree

    if any(process.exitcode == TOLD for process in watchdog._processes):
        kill_process_tree(os.getpid(), include_parent=False)
        sys.stdout.flush()
        sys.stderr.flush()
        # A thread of the launcher runs this: nothing else would end the process.
        os._exit(2)
    return original(watchdog)
