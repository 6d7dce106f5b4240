"""The checks of packed rows are checked: a mutant for each way to lose what was kept, or a page."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import scenarios
from helpers.invariants import Broken
from helpers.scenarios import Script
from pytest import MonkeyPatch

from sgl_sparsekv.backend.request_table import RequestEntry
from sgl_sparsekv.backend.views import packing
from sgl_sparsekv.backend.views.packing import Packing
from sgl_sparsekv.views import LayerView, PackedRow, RequestView
from sgl_sparsekv.views.stretches import stretches_of

Install = Callable[[Script, MonkeyPatch], None]
SCENARIOS = (
    scenarios.packed_alone, scenarios.packed_late, scenarios.packed_on_a_prefix,
    scenarios.packed_and_retracted, scenarios.packed_behind_an_answer_in_the_tree,
)  # fmt: skip


def moved_tokens_are_read_where_they_were(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(LayerView, "pack", lambda self, begin, end: None)


def a_renewed_view_forgets_where_they_lie(script: Script, patch: MonkeyPatch) -> None:
    of = LayerView.of.__func__  # type: ignore[attr-defined]
    plain = classmethod(lambda cls, made, kept, scores, places: of(cls, made, kept, scores))
    patch.setattr(LayerView, "of", plain)


def values_stay_behind(script: Script, patch: MonkeyPatch) -> None:
    taken = Packing._taken
    patch.setattr(Packing, "_taken", lambda self, *how: taken(self, *how)[::2])


def one_head_moves_what_another_keeps(script: Script, patch: MonkeyPatch) -> None:
    sources = LayerView.sources
    patch.setattr(LayerView, "sources", lambda self, *span: sources(self, *span).roll(1, 1))


def places_that_hold_nothing_are_freed(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(PackedRow, "held", lambda self, ranges: list(ranges))


def what_was_moved_enters_the_tree(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(RequestEntry, "offered", lambda self, length: length)


def pages_of_the_tree_are_filled(script: Script, patch: MonkeyPatch) -> None:
    move = Packing._move

    def over_it(view: RequestView, first: int, begin: int, page: int) -> Any:
        found = move(view, first, begin, page)
        return replace(found, own=[(begin, first), *found.own])

    patch.setattr(Packing, "_move", staticmethod(over_it))


def what_others_held_is_held_by_nobody(script: Script, patch: MonkeyPatch) -> None:
    hold = Packing._hold

    def let_go(request: Any, tree: Any, tokens: int) -> None:
        hold(request, tree, tokens)
        tree.unlock(request.lock)
        request.lock = None

    patch.setattr(Packing, "_hold", staticmethod(let_go))


def the_prompt_stays_held(script: Script, patch: MonkeyPatch) -> None:
    hold = Packing._hold

    def keep(request: Any, tree: Any, tokens: int) -> None:
        tree.lock(request.last_node)
        hold(request, tree, tokens)

    patch.setattr(Packing, "_hold", staticmethod(keep))


def pages_keep_their_stamps(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(packing, "note_handed_out", lambda slots: None)


def a_row_that_comes_back_is_packed_still(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(RequestView, "unpack", lambda self: None)


def new_pages_are_lost(script: Script, patch: MonkeyPatch) -> None:
    fresh = Packing._fresh

    def more(tree: Any, tokens: int) -> torch.Tensor:
        return fresh(tree, tokens + tree.page_size)[:tokens]

    patch.setattr(Packing, "_fresh", staticmethod(more))


def places_are_told_instead_of_positions(script: Script, patch: MonkeyPatch) -> None:
    def told(self: LayerView) -> list[list[int]]:
        kept, counts = self.listed(self.made)
        lie = zip(self.lying(kept), counts.tolist(), strict=True)
        return [stretches_of(own[:count], self.made) for own, count in lie]

    patch.setattr(LayerView, "stretches", told)


def an_answer_in_the_tree_is_taken_for_its_own(script: Script, patch: MonkeyPatch) -> None:
    move = Packing._move
    plain = staticmethod(lambda *how: replace(move(*how), behind=0))
    patch.setattr(Packing, "_move", plain)


def an_answer_in_the_tree_is_not_copied(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(Packing, "_copied", lambda self, slots: [])


MUTANTS: tuple[tuple[Install, Callable[[Script], None]], ...] = (
    (moved_tokens_are_read_where_they_were, scenarios.packed_alone),
    (a_renewed_view_forgets_where_they_lie, scenarios.packed_alone),
    (values_stay_behind, scenarios.packed_alone),
    (one_head_moves_what_another_keeps, scenarios.packed_alone),
    (places_that_hold_nothing_are_freed, scenarios.packed_alone),
    (what_was_moved_enters_the_tree, scenarios.packed_alone),
    (pages_of_the_tree_are_filled, scenarios.packed_on_a_prefix),
    (what_others_held_is_held_by_nobody, scenarios.packed_on_a_prefix),
    (the_prompt_stays_held, scenarios.packed_alone),
    (pages_keep_their_stamps, scenarios.packed_late),
    (a_row_that_comes_back_is_packed_still, scenarios.packed_and_retracted),
    (new_pages_are_lost, scenarios.packed_alone),
    (places_are_told_instead_of_positions, scenarios.packed_alone),
    (
        an_answer_in_the_tree_is_taken_for_its_own,
        scenarios.packed_behind_an_answer_in_the_tree,
    ),
    (an_answer_in_the_tree_is_not_copied, scenarios.packed_behind_an_answer_in_the_tree),
)


@pytest.mark.parametrize("core", ("rust", "python"))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.__name__))
def test_correct_code_passes_every_scenario(
    core: str, scenario: Callable[[Script], None], sglang: None
) -> None:
    script = Script(core)
    scenario(script)
    assert script.host.metrics.snapshot()["tokens_freed_total"] > 0


@pytest.mark.parametrize(
    ("install", "scenario"), MUTANTS, ids=[install.__name__ for install, _ in MUTANTS]
)
def test_every_mutant_is_caught(
    install: Install,
    scenario: Callable[[Script], None],
    sglang: None,
    monkeypatch: MonkeyPatch,
) -> None:
    script = Script("rust")
    install(script, monkeypatch)
    with pytest.raises(Broken) as caught:
        scenario(script)
    print(f"{install.__name__} | {scenario.__name__}, {script.move} | {str(caught.value)[:48]}")
