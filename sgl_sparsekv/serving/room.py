"""Prompts behind which the server's memory has no room for an answer."""

from collections.abc import Callable
from typing import Any


def refuse_without_room(original: Callable[..., None], scheduler: Any, request: Any) -> None:
    """Around `Scheduler.init_req_max_new_tokens`: a 400 instead of an answer without a token.

    SGLang cuts an answer to what the KV cache can hold beside the prompt's pages, one page kept
    back: with large pages and a small cache that may be nothing.
    """
    from ..backend.request_table import active_table

    asked = request.sampling_params.max_new_tokens
    original(scheduler, request)
    table = active_table()
    if table is None or not table.server.validate_requests:
        return
    if scheduler.server_args.allow_auto_truncate:
        return  # the prompt is cut behind this
    left = request.sampling_params.max_new_tokens
    if asked == 0 or left or request.to_finish is not None or request.finished():
        return
    request.set_finish_with_abort(
        f"prompt must leave room for an answer in a KV cache of {scheduler.max_total_num_tokens} "
        f"tokens, in pages of {scheduler.page_size} of which one is kept back, got "
        f"{len(request.origin_input_ids)} tokens; use a shorter prompt or a larger cache"
    )
