"""Our part of `/server_info`."""

from typing import Any

from .. import __version__
from .metrics import process_metrics

KEY = "sparsekv"


def add_internal_state(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """After `Scheduler.get_internal_state`: add `internal_states[i]["sparsekv"]`."""
    from ..backend.flags import options_of
    from ..plugin import HOOKS, missing_hooks

    options = options_of(scheduler.server_args)
    if options is None:
        return
    counters = process_metrics().snapshot()
    missing = missing_hooks()
    result.internal_state[KEY] = {
        "version": __version__,
        "options": options.as_dict(),
        "hooks": {hook.target: hook.target not in missing for hook in HOOKS},
        "metadata_bytes": counters["metadata_bytes"],
        "counters": counters,
    }
