"""What SGLang cuts short, said when a server starts, and prompts that leave no room at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..geometry import whole_pages

_PROMPT_LEAVES, _ANSWER_LEAVES = 7, 2
"""Tokens of the context, or of the cache, that SGLang's longest prompt and answer leave free."""


@dataclass(frozen=True)
class Room:
    """What a server has for a request that is alone in it.

    Attributes:
        context: tokens of prompt and answer that the model takes.
        cache: tokens of the KV cache.
        page_size: tokens of its pages.
    """

    context: int
    cache: int
    page_size: int

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt that gets a token of answer."""
        cached = whole_pages(self.cache - self.page_size - 2, self.page_size)
        return max(0, min(self.shorter - _PROMPT_LEAVES, cached))

    @property
    def whole(self) -> int:
        """Tokens of prompt and answer together up to which no answer is cut."""
        return max(0, min(self.shorter - _ANSWER_LEAVES, self.cache - 2 * self.page_size))

    @property
    def shorter(self) -> int:
        """Of context and cache."""
        return min(self.context, self.cache)

    def told(self) -> str:
        """For the log of a start."""
        return (
            f"prompt and answer of up to {self.whole} tokens together are answered whole, longer "
            f"answers may be cut; prompts of more than {self.prompt} are refused (context "
            f"{self.context}, cache {self.cache} in pages of {self.page_size})"
        )


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
