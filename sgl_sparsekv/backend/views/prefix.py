"""A prefix hit leaves the tokens whose queries a view is made by, so that it is made alike."""

from collections.abc import Callable
from typing import Any

from ..request_table import active_table


def leave_queries(original: Callable[..., int], request: Any, input_len: int) -> int:
    """Around `Req._compute_max_prefix_len`: the last tokens of a prompt are read anew.

    What is read anew is `observation_window` tokens and the rest of a page at most.
    """
    longest, table = original(request, input_len), active_table()
    view = None if table is None else table.enter(request).view
    needed = None if view is None else view.first_needed
    return longest if needed is None else min(longest, needed)
