"""How large a server's context and pool must be, so that SGLang cuts nothing short.

SGLang 0.5.23 takes prompts of up to 7 tokens less than its context, and ends an answer 2 tokens
before it (`tp_worker.py`, `max_req_len` and `max_req_input_len`). Of its pool it takes an answer's
tokens, the prompt's in whole pages, and one page more; where that does not fit, the answer is cut,
to no token at all if need be (`mem_cache/allocator/base.py`, `max_new_tokens_for_memory`).
"""

from ..geometry import ceil_div

KEPT = 7
"""Tokens of a context that prompt and answer together leave free."""


def room(longest: int, held: int, page_size: int) -> tuple[str, ...]:
    """Flags of a server that answers prompts to the last token asked for.

    Args:
        longest: tokens of the longest prompt and its answer, together.
        held: tokens of all that the pool holds at a time, `longest` at least.
        page_size: tokens of a page of the pool.
    """
    context = longest + KEPT
    pages = ceil_div(max(held, context), page_size) + 2
    return "--context-length", str(context), "--max-total-tokens", str(pages * page_size)


def answered(context: int) -> int:
    """Tokens of prompt and answer together that a server with this context answers whole."""
    return context - KEPT
