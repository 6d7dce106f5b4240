"""The GPU's way of keeping metadata true: lazy, with no number from the device.

The same histories and the same checks as for the CPU's way; only the backend differs. Dense steps,
which leave what they fill without a stamp, are thrown in between sparse ones.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from helpers import scenarios
from helpers.host import Host
from helpers.invariants import Broken
from helpers.machine import FusedMachine, run_machine
from helpers.scenarios import Script
from helpers.soak import Size
from helpers.steps import StepDied
from helpers.torch_fused import TorchFused
from pytest import MonkeyPatch

from sgl_sparsekv.backend.held_places import HeldPlaces
from sgl_sparsekv.backend.views.store import Runs, ViewPlace, ViewStore
from sgl_sparsekv.views import RequestView

OPERATIONS = (1400, 20_000)
"""Operations over the page sizes, and in soak."""
PAGE_SIZES = (16, 64)
SCENARIOS = [
    scenario
    for name, scenario in vars(scenarios).items()
    if getattr(scenario, "__module__", "") == scenarios.__name__
    and name not in ("prompt", "Script")
    and not name.startswith("packed")  # rows of a GPU's requests stay whole
]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_metadata_stays_true_under_any_history(page_size: int, sglang: None, size: Size) -> None:
    """No stale read and no mismatch, dense steps between sparse ones included."""
    machine = type(
        f"FusedMachine_{page_size}",
        (FusedMachine,),
        {"core": "rust", "page_size": page_size, "counts": Counter(), "seen": Counter()},
    )
    share = size(*OPERATIONS) // len(PAGE_SIZES)
    run_machine(machine, share, None)
    counts: Counter[str] = machine.counts
    print(f"fused, page {page_size}: {counts.total()} operations, {dict(machine.seen)}")
    assert counts.total() >= share


def fused_script() -> Script:
    """A script over the fused backend."""
    script = Script("rust")
    script.host = Host("rust", scenarios.PAGE, scenarios.PAGES, kind="fused")
    script.checker = type(script.checker)(script.host)
    return script


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_correct_code_passes_every_scenario(
    scenario: Callable[[Script], None], sglang: None
) -> None:
    """No check is triggered by the code as it is."""
    scenario(fused_script())


def died_in_prefill(script: Script) -> None:
    """A prefill dies between two layers; what it had begun to summarise stays in the tree."""
    script.load_back(scenarios.prompt(2))
    live = script.start(scenarios.prompt(2), scenarios.SPARSE)
    try:
        script.host.prefill([live], 1000, die_after=0)
    except StepDied:
        script.release(live, insert=False)
    script.serve(2)


def _never_forgets(patch: MonkeyPatch) -> None:
    patch.setattr(TorchFused, "forget", lambda self, sealed, slots: None)


def _forgets_whole_pages_only(patch: MonkeyPatch) -> None:
    forget = TorchFused.forget

    def first_slots(self: Any, sealed: torch.Tensor, slots: torch.Tensor) -> None:
        page = self.shape.page_size
        opened = slots[slots % page == 0] // page
        forget(self, sealed, (opened[:, None] * page + torch.arange(page)).reshape(-1))

    patch.setattr(TorchFused, "forget", first_slots)


def _lists_nothing_old(patch: MonkeyPatch) -> None:
    begin = TorchFused.begin

    def only_the_newest(self: Any, sealed: torch.Tensor, *args: Any) -> None:
        begin(self, torch.ones_like(sealed), *args)

    patch.setattr(TorchFused, "begin", only_the_newest)


def _seals_at_once(patch: MonkeyPatch) -> None:
    begin = TorchFused.begin

    def sealing(self: Any, sealed: torch.Tensor, *args: Any) -> None:
        begin(self, sealed, *args)
        sealed[self.pending] = True

    patch.setattr(TorchFused, "begin", sealing)


def _keeps_options(patch: MonkeyPatch) -> None:
    from sgl_sparsekv.backend.option_table import OptionTable

    patch.setattr(OptionTable, "bind", lambda self, row, options: None)


def _a_row_is_always_the_same_requests(patch: MonkeyPatch) -> None:
    write = HeldPlaces._write

    def nobody(self: HeldPlaces, row: int, every: int, place: int) -> None:
        self._numbers = count()
        write(self, row, every, place)

    patch.setattr(HeldPlaces, "_write", nobody)


def _all_hold_in_one_place(patch: MonkeyPatch) -> None:
    patch.setattr(HeldPlaces, "_take", lambda self, rows: 0)


def _a_retracted_request_goes_on_with_what_it_held(patch: MonkeyPatch) -> None:
    bind = HeldPlaces.bind

    def as_before(self: HeldPlaces, rows: Any, entries: Any) -> None:
        bind(self, rows, [replace(entry, retractions=0) for entry in entries])

    patch.setattr(HeldPlaces, "bind", as_before)


def _scores_that_are_held_are_those_of_the_layer_below(patch: MonkeyPatch) -> None:
    holding = TorchFused._holding

    def swapped(self: Any, *args: Any) -> dict[str, Any]:
        found = holding(self, *args)
        if found["held"] is not None:
            found["held"] = dict.fromkeys(found["held"], found["held"][max(found["held"])])
        return found

    patch.setattr(TorchFused, "_holding", swapped)


def _a_row_keeps_the_view_that_it_had_first(patch: MonkeyPatch) -> None:
    bind = ViewStore.bind

    def once(self: ViewStore, row: int, place: ViewPlace | None) -> None:
        if row not in self._bound:
            bind(self, row, place)

    patch.setattr(ViewStore, "bind", once)


def _a_prompt_leaves_no_queries(patch: MonkeyPatch) -> None:
    from sgl_sparsekv.backend.views.device_views import DeviceViews

    patch.setattr(DeviceViews, "extended", lambda self, number, q: None)


def _queries_of_the_row_beside_it(patch: MonkeyPatch) -> None:
    view = TorchFused._view

    def shifted(self: Any, row: dict[str, Any], layer: int, q: torch.Tensor) -> Any:
        return view(self, row, layer, q.roll(1, 0))

    patch.setattr(TorchFused, "_view", shifted)


def _tokens_since_are_never_kept(patch: MonkeyPatch) -> None:
    listed = ViewStore.listed

    def made_only(self: ViewStore, place: ViewPlace, layer: int, length: int) -> torch.Tensor:
        return listed(self, place, layer, place.written)

    patch.setattr(ViewStore, "listed", made_only)


def _sums_begin_anew(patch: MonkeyPatch) -> None:
    run = ViewStore.run

    def nothing(self: ViewStore, buffer: torch.Tensor, *args: Any) -> Any:
        found, count = run(self, buffer, *args)
        return found * (buffer is not self.buffers.scores), count

    patch.setattr(ViewStore, "run", nothing)


def _what_is_due_is_forgotten_when_retracted(patch: MonkeyPatch) -> None:
    end = RequestView.unpack

    def forgetting(self: RequestView) -> None:
        end(self)
        self.due = 0  # type: ignore[attr-defined]

    patch.setattr(RequestView, "unpack", forgetting)


def _a_place_is_given_away_twice(patch: MonkeyPatch) -> None:
    take = Runs.take

    def again(self: Runs, width: int) -> int | None:
        free = list(self._free)
        first = take(self, width)
        self._free = free
        return first

    patch.setattr(Runs, "take", again)


@pytest.mark.parametrize(
    ("install", "scenario"),
    [
        (_never_forgets, scenarios.reuse),
        (_forgets_whole_pages_only, scenarios.taken_back),
        (_lists_nothing_old, scenarios.load_back),
        (_seals_at_once, died_in_prefill),
        (_keeps_options, scenarios.grow),
        (_a_row_is_always_the_same_requests, scenarios.row_reuse),
        (_all_hold_in_one_place, scenarios.periods),
        (_a_retracted_request_goes_on_with_what_it_held, scenarios.period_retracted),
        (_scores_that_are_held_are_those_of_the_layer_below, scenarios.periods),
        (_a_row_keeps_the_view_that_it_had_first, scenarios.views_on_one_prefix),
        (_a_prompt_leaves_no_queries, scenarios.views_on_one_prefix),
        (_queries_of_the_row_beside_it, scenarios.views_on_one_prefix),
        (_tokens_since_are_never_kept, scenarios.views_on_one_prefix),
        (_sums_begin_anew, scenarios.views_on_one_prefix),
        (_what_is_due_is_forgotten_when_retracted, scenarios.view_retracted),
        (_a_place_is_given_away_twice, scenarios.views_on_one_prefix),
    ],
    ids=lambda value: value.__name__.strip("_"),
)
def test_every_mutant_is_caught(
    install: Callable[[MonkeyPatch], None],
    scenario: Callable[[Script], None],
    sglang: None,
    monkeypatch: MonkeyPatch,
) -> None:
    """The checks see what can go wrong in this way of doing it."""
    install(monkeypatch)
    with pytest.raises(Broken):
        scenario(fused_script())
