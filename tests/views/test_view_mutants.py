"""The checks of views are checked: a mutant for each way to lose one, or to touch a neighbour."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import scenarios
from helpers.invariants import Broken
from helpers.scenarios import Script
from pytest import MonkeyPatch

from sgl_sparsekv.backend.request_table import RequestTable
from sgl_sparsekv.backend.views import step_views
from sgl_sparsekv.backend.views.step_views import StepViews
from sgl_sparsekv.types import TokenLists
from sgl_sparsekv.views import LayerView, RequestView
from sgl_sparsekv.views.queries import LastQueries

Install = Callable[[Script, MonkeyPatch], None]
SCENARIOS = (
    scenarios.views_on_one_prefix, scenarios.view_row_reuse, scenarios.view_moved,
    scenarios.view_retracted, scenarios.view_chunks,
)  # fmt: skip


def what_is_left_out_is_erased(script: Script, patch: MonkeyPatch) -> None:
    """Eviction, as the papers do it."""
    decode = StepViews.decode

    def erasing(self: StepViews, *args: Any) -> None:
        decode(self, *args)
        for seen in self._decoding.values():
            if seen.view.made:
                listed, _ = seen.view.layers[0].listed(len(seen.slots))
                gone = torch.ones(len(seen.slots), dtype=torch.bool)
                gone[listed[listed >= 0].long()] = False
                script.host.pool.k_buffer[0][seen.slots[gone].long()] = torch.nan

    patch.setattr(StepViews, "decode", erasing)


def a_view_stays_with_its_row(script: Script, patch: MonkeyPatch) -> None:
    made: list[RequestView] = []

    def kept(*args: Any) -> RequestView:
        made.extend([RequestView(*args)] * (not made))
        return made[0]

    patch.setattr(RequestView, "of", classmethod(lambda cls, o, p, b: kept(*method_of(o), p, b)))


def method_of(options: Any) -> tuple[Any, Any]:
    """A view's method and options."""
    from sgl_sparsekv.selection import load_method

    return load_method(options.method), options


def slots_are_remembered(script: Script, patch: MonkeyPatch) -> None:
    listed = step_views.lists_of
    known: dict[int, torch.Tensor] = {}

    def remembering(views: list[LayerView], slots: list[torch.Tensor]) -> TokenLists:
        pairs = zip(views, slots, strict=True)
        first = [known.setdefault(id(view.positions), own.clone()) for view, own in pairs]
        longer = [torch.cat((old, own[len(old) :])) for old, own in zip(first, slots, strict=True)]
        return listed(views, longer)

    patch.setattr(step_views, "lists_of", remembering)


def a_hit_passes_over_the_last_queries(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(RequestView, "first_needed", None)


def queries_of_the_row_beside_it(script: Script, patch: MonkeyPatch) -> None:
    see = StepViews._see

    def shifted(seen: Any, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        see(seen, layer, q.roll(1, 0), keys, scale)

    patch.setattr(StepViews, "_see", staticmethod(shifted))


def only_the_last_chunk_is_seen(script: Script, patch: MonkeyPatch) -> None:
    add = LastQueries.add

    def forgetting(self: LastQueries, q: torch.Tensor, first: int) -> None:
        if len(q) > 1:
            self._end = self._first = 0
        add(self, q, first)

    patch.setattr(LastQueries, "add", forgetting)


def a_retracted_view_is_made_anew_without_the_old_one(script: Script, patch: MonkeyPatch) -> None:
    note = RequestTable.note

    def dropping(self: RequestTable, row: int, request: Any) -> None:
        before = self.enter(request).retractions
        note(self, row, request)
        entry = self.entry(row)
        if entry.retractions != before and entry.view is not None:
            entry.view = entry.view.unmade()

    patch.setattr(RequestTable, "note", dropping)


def what_was_weighed_is_not_settled_before_a_prefill(script: Script, patch: MonkeyPatch) -> None:
    settle = StepViews.settle

    def extend(self: StepViews, *args: Any) -> None:
        patch.setattr(StepViews, "settle", lambda self, entry: None)
        original(self, *args)
        patch.setattr(StepViews, "settle", settle)

    original = StepViews.extend
    patch.setattr(StepViews, "extend", extend)


def new_tokens_are_left_out(script: Script, patch: MonkeyPatch) -> None:
    listed = LayerView.listed
    patch.setattr(
        LayerView, "listed", lambda self, length: listed(self, max(self.made, length - 1))
    )


def the_map_of_the_first_view_is_told(script: Script, patch: MonkeyPatch) -> None:
    told, first = RequestView.told, {}

    def stale(self: RequestView) -> dict[str, Any]:
        now = told(self)
        return {**now, "map": first.setdefault(id(self), now["map"])}

    patch.setattr(RequestView, "told", stale)


MUTANTS: tuple[tuple[Install, Callable[[Script], None]], ...] = (
    (what_is_left_out_is_erased, scenarios.views_on_one_prefix),
    (a_view_stays_with_its_row, scenarios.view_row_reuse),
    (slots_are_remembered, scenarios.view_moved),
    (a_hit_passes_over_the_last_queries, scenarios.views_on_one_prefix),
    (queries_of_the_row_beside_it, scenarios.views_on_one_prefix),
    (only_the_last_chunk_is_seen, scenarios.view_chunks),
    (a_retracted_view_is_made_anew_without_the_old_one, scenarios.view_retracted),
    (what_was_weighed_is_not_settled_before_a_prefill, scenarios.view_retracted),
    (new_tokens_are_left_out, scenarios.view_chunks),
    (the_map_of_the_first_view_is_told, scenarios.views_on_one_prefix),
)


@pytest.mark.parametrize("core", ("rust", "python"))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.__name__))
def test_correct_code_passes_every_scenario(
    core: str, scenario: Callable[[Script], None], sglang: None
) -> None:
    scenario(Script(core))


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
