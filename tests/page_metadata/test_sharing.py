"""Whose keys the radix tree holds: what a sparse step made is offered, counted, or kept back.

The state machines draw `share_generated` too and hold after every operation that nothing that was
kept back is in the tree (`helpers/invariants.py`); here is what a request gets, move by move.
"""

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.host import Host
from helpers.invariants import Broken
from helpers.scenarios import PAGE, PAGES, SPARSE, Script, prompt
from helpers.steps import Live
from pytest import MonkeyPatch

from sgl_sparsekv.backend.request_table import RequestEntry
from sgl_sparsekv.config import RequestOptions

ALONE = {"share_generated": False}
FULL = {"method": "full"}
KINDS = ("grouped", "fused")


@pytest.fixture(params=KINDS)
def script(request: pytest.FixtureRequest, sglang: None) -> Script:
    """An empty machine of each kind of decode."""
    made = Script("rust")
    made.host = Host("rust", PAGE, PAGES, kind=request.param)
    made.checker = type(made.checker)(made.host)
    return made


def generate(script: Script, steps: int, **options: Any) -> Live:
    """A request decodes `steps` tokens and ends; its prompt has 97 tokens, 6 pages and one."""
    live = script.serve(2, steps=steps, **options)
    script.release(live, insert=True)
    return live


def hit(script: Script, tokens: list[int]) -> int:
    """Tokens of this text that the tree holds."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(array("q", tokens), None).page_aligned(PAGE)
    return int(script.host.tree.match_prefix(MatchPrefixParams(key=key)).device_prefix_len)


def test_a_request_that_shares_offers_all_of_its_text(script: Script) -> None:
    """97 tokens of prompt, 40 steps: K of 137 tokens, 8 whole pages."""
    live = generate(script, 40)
    assert hit(script, live.tokens) == 8 * PAGE


def test_a_request_that_does_not_share_offers_what_prefill_made(script: Script) -> None:
    """The prompt's whole pages, for anybody; its answer for nobody."""
    live = generate(script, 40, **ALONE)
    assert hit(script, live.tokens) == 6 * PAGE


@pytest.mark.parametrize("options", [FULL, {"budget": 1.0}, {"dense_layers": 2}], ids=str)
def test_steps_that_read_everything_are_offered(script: Script, options: dict[str, Any]) -> None:
    """By method, by budget, and by layers."""
    live = generate(script, 40, **options, **ALONE)
    assert hit(script, live.tokens) == 8 * PAGE


def test_tokens_are_offered_up_to_the_first_step_that_left_something_out(script: Script) -> None:
    """A budget of 112 tokens is exceeded at 113: the seventh page is whole, the eighth is not."""
    live = generate(script, 40, budget=112, **ALONE)
    assert hit(script, live.tokens) == 7 * PAGE


def test_a_later_exact_step_is_not_offered_behind_a_sparse_one(script: Script) -> None:
    """Its keys attended to keys that a sparse step had made."""
    live = script.serve(2, steps=20, **ALONE)
    entry = script.host.backend.table.of(live.req)
    entry.options = RequestOptions(method="full", share_generated=False)
    for _ in range(20):
        script.decode([live])
    script.release(live, insert=True)
    assert hit(script, live.tokens) == 6 * PAGE


def test_a_retracted_request_offers_what_its_second_prefill_made(script: Script) -> None:
    """Its answer so far is then dense text like any prompt."""
    live = script.serve(2, steps=40, **ALONE)
    script.retract(live)
    script.prefill([live], 1000)
    for _ in range(20):
        script.decode([live])
    script.release(live, insert=True)
    assert hit(script, live.tokens) == 8 * PAGE


def test_decode_in_a_mixed_batch_is_kept_back_as_well(script: Script) -> None:
    """A decoding row of an extend batch is no prefill."""
    live = script.serve(2, steps=30, **ALONE)
    other = script.start(prompt(3), FULL)
    while not other.decoding:
        script.prefill([other], 9, mixed=[live])
    script.release(live, insert=True)
    assert hit(script, live.tokens) == 6 * PAGE


def test_the_same_text_made_densely_is_offered_and_never_merged_with_what_was_kept_back(
    script: Script,
) -> None:
    """The next turn's prompt is the first turn's text: it prefills the answer itself."""
    live = generate(script, 40, **ALONE)
    text = live.tokens
    again = script.start([*text, 1], FULL)
    script.prefill([again], 1000)
    own = script.host.row_pool.req_to_token[again.row, : again.length].long()
    assert not script.host.kept_back[own].any()
    script.release(again, insert=True)
    assert hit(script, text) == 8 * PAGE


def test_a_hit_on_sparser_text_is_counted(script: Script) -> None:
    """A dense reader takes 6 pages of prompt and 2 that a budget of 64 tokens generated."""
    text = generate(script, 40).tokens
    for options, sparser in (
        (FULL, 31),
        ({**SPARSE, "budget": 96}, 31),
        ({**SPARSE, "budget": 64}, 0),
        ({**SPARSE, "budget": 48}, 0),
    ):
        live = script.start([*text, 0], options)
        script.prefill([live], 1000)
        told = script.host.backend.table.of(live.req).report()["tokens_from_sparser"]
        assert told == sparser, options
        script.release(live, insert=False)
    assert script.host.metrics.snapshot()["tokens_from_sparser_total"] == 62


@pytest.mark.parametrize("options", [ALONE, FULL], ids=str)
def test_nothing_is_counted_where_nothing_sparser_is_read(
    script: Script, options: dict[str, Any]
) -> None:
    """A request that keeps its answer back, and one whose steps read everything."""
    text = generate(script, 40, **options).tokens
    live = script.start([*text, 0], FULL)
    script.prefill([live], 1000)
    assert script.host.backend.table.of(live.req).tokens_from_sparser == 0


def test_a_page_in_its_next_life_is_not_called_sparser(script: Script) -> None:
    """Pages of a sparse answer are freed, and hold another prompt."""
    generate(script, 40)
    script.evict(PAGES * PAGE)
    text = [3] * ((PAGES - 3) * PAGE)
    live = script.start(text, FULL)
    script.prefill([live], 1000)
    script.release(live, insert=True)
    live = script.start([*text, 0], FULL)
    script.prefill([live], 1000)
    assert script.host.backend.table.of(live.req).tokens_from_sparser == 0


def test_text_that_was_there_keeps_who_made_it(script: Script) -> None:
    """A sparse request generates what a dense prompt had: the tree keeps the dense pages."""
    text = generate(script, 40).tokens
    script.evict(PAGES * PAGE)
    sparse = script.serve(2, steps=0)
    dense = script.start([*text, 0], FULL)
    script.prefill([dense], 1000)
    script.release(dense, insert=True)
    for _ in range(40):
        script.decode([sparse])
    assert sparse.tokens == text
    script.release(sparse, insert=True)
    reader = script.start([*text, 0], FULL)
    script.prefill([reader], 1000)
    assert script.host.backend.table.of(reader.req).tokens_from_sparser == 0
    own = script.host.row_pool.req_to_token[reader.row, : 8 * PAGE].long()
    assert torch.equal(script.host.metadata.budgets[own], torch.zeros(8 * PAGE, dtype=torch.int32))


def _shares_all(patch: MonkeyPatch) -> None:
    patch.setattr(RequestEntry, "offered", lambda self, length: length)


def _one_too_many(patch: MonkeyPatch) -> None:
    def offered(self: RequestEntry, length: int) -> int:
        return length if self.options.share_generated else min(length, self.exact + 1)

    patch.setattr(RequestEntry, "offered", offered)


@pytest.mark.parametrize("install", [_shares_all, _one_too_many])
def test_the_state_machines_check_sees_a_kept_back_token(
    script: Script, install: Callable[[MonkeyPatch], None], monkeypatch: MonkeyPatch
) -> None:
    """A prompt that lacks one token of a whole page: the first generated one would fill it."""
    install(monkeypatch)
    live = script.start(prompt(2)[: 6 * PAGE - 1], {**SPARSE, **ALONE})
    script.prefill([live], 1000)
    script.decode([live])
    script.decode([live])
    with pytest.raises(Broken, match="sharing"):
        script.release(live, insert=True)
