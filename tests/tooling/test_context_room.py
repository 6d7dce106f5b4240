"""Room in a server's context and pool, against SGLang's own arithmetic."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from sgl_sparsekv.tooling.room import answered, room

PAGE = 64


def sglang_answers(prompt, new, context, pool):
    """Tokens of its answer, by SGLang's scheduler and allocator; None if it refuses the prompt."""
    from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

    longest = min(context - 1, pool - 1)
    if prompt >= longest - 5:
        return None
    capped = max(0, min(new, longest - prompt - 1))
    return BaseTokenToKVPoolAllocator.max_new_tokens_for_memory(
        SimpleNamespace(page_size=PAGE),
        prompt,
        capped,
        token_capacity=pool,
        sliding_window_size=None,
        chunk_size=None,
    )


def sizes(longest, held):
    flags = dict(pairwise(room(longest, held, PAGE)))
    return int(flags["--context-length"]), int(flags["--max-total-tokens"])


@pytest.mark.parametrize("new", [1, 2, 64, 4000])
@pytest.mark.parametrize("prompt", [1, 63, 64, 65, 4027, 8128, 8191])
def test_whatever_was_made_room_for_is_answered_whole(prompt, new):
    context, pool = sizes(prompt + new, prompt + new)
    assert pool % PAGE == 0
    assert sglang_answers(prompt, new, context, pool) == new
    assert answered(context) == prompt + new


def test_without_room_answers_are_cut_as_was_seen():
    """The cases that this module is for: 62 of 64 tokens, and none of 60."""
    assert sglang_answers(8128, 64, 8192, 1 << 20) == 62
    assert sglang_answers(4027, 60, 1 << 20, 4096) == 0


def test_a_pool_holds_what_it_is_asked_to_hold():
    assert sizes(1000, 50_000)[1] >= 50_000
