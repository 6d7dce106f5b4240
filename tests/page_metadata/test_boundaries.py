"""Lengths around the ends of pages, and prompts shorter than what is always kept.

Every decode step is compared with that of the same request alone on an empty machine
(`helpers/invariants.py`): units, scores and output.
"""

from itertools import product
from typing import Any

import pytest
from helpers.host import Host
from helpers.invariants import Checker
from helpers.scenarios import SPARSE
from helpers.steps import Live
from helpers.toy_model import HEADS, LAYERS

KINDS = ("grouped", "fused")
Units = list[list[list[int]]]


def text(length: int) -> list[int]:
    """Tokens that do not repeat themselves for long."""
    return [(i * i + i // 7) % 4 for i in range(length)]


def units_read(host: Host) -> Units:
    """Logical units `[layer][H][n]` that the last step's first row read."""
    return [host.recorder.units_of(layer, 0) for layer in range(LAYERS)]


def answer(host: Host, checker: Checker, prompt: list[int], steps: int, **how: Any) -> list[Units]:
    """A request comes, decodes `steps` tokens and goes; what each step read."""
    live = host.start(prompt, SPARSE | how.pop("options", {}))
    while not live.decoding:
        host.prefill([live], how.get("chunk", 1000))
    read = decode(host, checker, live, steps)
    host.release(live, insert=True)
    checker.check()
    return read


def decode(host: Host, checker: Checker, live: Live, steps: int) -> list[Units]:
    """So many steps, each checked."""
    read = []
    for _ in range(steps):
        host.decode([live])
        read.append(units_read(host))
        checker.check()
    return read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page", [16, 32, 64])
def test_ends_of_pages_are_no_special_places(sglang: None, page: int, kind: str) -> None:
    """Cold, warm, with one token more, and after a flush: the same units in every step."""
    host = Host("rust", page, 2048 // page, kind=kind)
    checker = Checker(host)
    for length in (page - 1, page, page + 1, 2 * page - 1, 2 * page, 2 * page + 1, 4 * page):
        prompt = text(length)
        cold = answer(host, checker, prompt, 6)
        assert answer(host, checker, prompt, 6) == cold, "on a prefix hit"
        longer = answer(host, checker, text(length + 1), 6)
        host.flush(new_weights=False)
        assert answer(host, checker, prompt, 6) == cold, "after a flush"
        host.flush(new_weights=False)
        assert answer(host, checker, text(length + 1), 6) == longer, "one token more, cold"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", range(1, 6))
def test_a_last_chunk_of_one_token_is_prefill(sglang: None, whole: int, kind: str) -> None:
    """Whole chunks and one token, beside others that decode: as if it were alone."""
    host = Host("rust", 16, 96, kind=kind)
    checker, chunk = Checker(host), 64
    prompt = [3, *text(chunk * whole)]
    alone = answer(host, checker, prompt, 4)
    host.flush(new_weights=False)
    others = [host.start([i, *text(100)], SPARSE) for i in range(2)]
    host.prefill(others, 1000)
    live = host.start(prompt, SPARSE)
    while not live.decoding:
        host.prefill([live], chunk, mixed=others)
        checker.check()
    assert len(live.req.output_ids) == 1, "the last token of a prompt is no decode step"
    beside = []
    for _ in range(4):
        host.decode([live, *others])
        beside.append(units_read(host))
        checker.check()
    assert beside == alone


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_shorter_than_what_is_always_kept(sglang: None, kind: str) -> None:
    """Windows and sinks beyond the context, the least budget and the largest, by every method."""
    host = Host("rust", 16, 32, kind=kind)
    checker = Checker(host)
    choices = list(
        product((1, 2, 15, 16, 17), (64, 4096), (0, 4096), (0.001, 1.0), host.options.methods)
    )
    for length, window, sink, budget, method in choices:
        options = {"method": method, "budget": budget, "window": window, "sink": sink}
        (read,) = answer(host, checker, text(length), 1, options=options)
        assert len(read) == LAYERS and all(len(layer) == HEADS for layer in read)
    assert checker.compared == LAYERS * len(choices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_selects_alike_however_the_context_came(sglang: None, kind: str) -> None:
    """After one prefill, after an extend of one token, and after a retraction; by every method."""
    host = Host("rust", 16, 48, kind=kind)
    checker, prompt = Checker(host), text(16 * 9 + 5)
    for method in host.options.methods:
        options = {"method": method}
        (at_once,) = answer(host, checker, prompt, 1, options=options)
        host.flush(new_weights=False)
        (by_one,) = answer(host, checker, prompt, 1, options=options, chunk=len(prompt) - 1)
        host.flush(new_weights=False)
        live = host.start(prompt, SPARSE | options)
        host.prefill([live], 1000)
        host.retract(live)
        used = host.start([2] * 300, SPARSE)
        host.prefill([used], 1000)
        host.release(used, insert=False)
        while not live.decoding:
            host.prefill([live], 1000)
        after = decode(host, checker, live, 1)
        host.release(live, insert=False)
        host.flush(new_weights=False)
        answered = answer(host, checker, prompt, 2, options=options)
        assert by_one == at_once == answered[0], method
        assert after[0] == answered[1], f"{method}: its first output is part of the context"
