"""R4: the checks are checked. One mutant per way of going stale, each caught in one decode step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers import scenarios
from helpers.invariants import Broken
from helpers.scenarios import Script
from pytest import MonkeyPatch

import sgl_sparsekv.backend.planner as planner
from sgl_sparsekv.backend.held_scores import HeldScores
from sgl_sparsekv.backend.kv_pool import listen_to_allocator
from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata import PageMetadata, StepSeal

Install = Callable[[Script, MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """Our code with one mistake.

    Attributes:
        name: the mistake.
        threat: number in the list of `docs/invariants.md`.
        scenario: a history in which it matters.
        install: puts it in place.
    """

    name: str
    threat: int
    scenario: Callable[[Script], None]
    install: Install


MUTANTS: list[Mutant] = []


def mutant(name: str, threat: int, scenario: Callable[[Script], None]) -> Callable[..., Install]:
    """Register the decorated installer."""

    def register(install: Install) -> Install:
        MUTANTS.append(Mutant(name, threat, scenario, install))
        return install

    return register


def nothing(*args: Any) -> None:
    """Does not do its work."""


@mutant("pages that start anew keep their stamps", 1, scenarios.reuse)
def _keep_stamps(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(PageMetadata, "_forget", nothing)


@mutant("a unit counts as full one token early", 2, scenarios.grow)
def _early(script: Script, patch: MonkeyPatch) -> None:
    def completed(self: Geometry, slots: torch.Tensor) -> torch.Tensor:
        return slots[slots % self.unit_size == self.unit_size - 2] // self.unit_size

    patch.setattr(Geometry, "completed_units", completed)


@mutant("every unit that a step touches is sealed", 2, scenarios.chunks)
def _touched(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(Geometry, "completed_units", Geometry.unit_of)


@mutant("a unit that was begun in an earlier chunk is sealed, not summarised", 3, scenarios.chunks)
def _second_half(script: Script, patch: MonkeyPatch) -> None:
    begin, write = StepSeal.begin_step, script.host.backend.ops.summarise
    begun: list[torch.Tensor] = []

    def begin_step(self: StepSeal, new: torch.Tensor, needed: torch.Tensor) -> None:
        size = self.metadata.geometry.unit_size
        begun[:] = [new[new % size == 0] // size]
        begin(self, new, needed)

    def summarise(summary: Any, keys: Any, fields: Any, units: torch.Tensor) -> None:
        write(summary, keys, fields, units[torch.isin(units, begun[0])])

    patch.setattr(StepSeal, "begin_step", begin_step)
    patch.setattr(script.host.backend.ops, "summarise", summarise)


@mutant("pages that were filled unseen are scored as they are", 4, scenarios.load_back)
def _no_ensure(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(PageMetadata, "unsealed", lambda self, units: units[:0])


@mutant("the last candidate of a row is not made sure of", 4, scenarios.load_back)
def _short_ensure(script: Script, patch: MonkeyPatch) -> None:
    needed = planner.StepPlan.needed_units
    patch.setattr(planner.StepPlan, "needed_units", lambda self: needed(self)[:-1])


@mutant(
    "slots of a prefill that another backend runs are not announced", 4, scenarios.foreign_prefill
)
def _foreign(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(script.host.allocator, "alloc_extend", unannounced(script, "alloc_extend"))


@mutant("only the first page of a step starts anew", 5, scenarios.retraction)
def _first_page(script: Script, patch: MonkeyPatch) -> None:
    forget = PageMetadata._forget

    def first(self: PageMetadata, units: torch.Tensor, pages: torch.Tensor) -> None:
        forget(self, units[: self.geometry.units_per_page], pages[:1])

    patch.setattr(PageMetadata, "_forget", first)


@mutant("units are sealed behind the first layer", 6, scenarios.died)
def _first_layer(script: Script, patch: MonkeyPatch) -> None:
    write = StepSeal.summarise

    def summarise(self: StepSeal, layer: int, keys: torch.Tensor) -> None:
        write(self, layer, keys)
        self.metadata.seal(self.pending)

    patch.setattr(StepSeal, "summarise", summarise)


@mutant("padding seals page 0", 7, scenarios.padding)
def _page_zero(script: Script, patch: MonkeyPatch) -> None:
    begin = StepSeal.begin_step

    def begin_step(self: StepSeal, new: torch.Tensor, needed: torch.Tensor) -> None:
        begin(self, new, needed)
        self.pending = torch.unique(torch.cat((self.pending, new[new < 16] // 16)))

    patch.setattr(StepSeal, "begin_step", begin_step)


@mutant(
    "nothing is summarised, yet sealed, when K is stored by another kernel",
    7,
    scenarios.fused_store,
)
def _fused(script: Script, patch: MonkeyPatch) -> None:
    backend, write = script.host.backend, StepSeal.summarise
    saved: list[bool] = [True]

    def remember(k: Any, v: Any, layer: Any, batch: Any, save: bool) -> None:
        saved[0] = save
        type(backend)._write(backend, k, v, layer, batch, save)

    def summarise(self: StepSeal, layer: int, keys: torch.Tensor) -> None:
        if saved[0]:
            write(self, layer, keys)
        elif layer:
            self.metadata.seal(self.pending)

    patch.setattr(backend, "_write", remember)
    patch.setattr(StepSeal, "summarise", summarise)


@mutant("slots that the allocator hands out are not announced", 8, scenarios.load_back_reuse)
def _no_hand_out(script: Script, patch: MonkeyPatch) -> None:
    patch.setattr(script.host.allocator, "alloc", unannounced(script, "alloc"))


@mutant("a moved page takes its stamp along and leaves its fields", 8, scenarios.moved)
def _moved_stamp(script: Script, patch: MonkeyPatch) -> None:
    host = script.host
    move = host.pool.move_kv_cache

    def move_kv_cache(target: torch.Tensor, source: torch.Tensor) -> None:
        move(target, source)
        host.metadata.sealed[target // PAGE] = host.metadata.sealed[source // PAGE]

    patch.setattr(host.allocator, "alloc", unannounced(script, "alloc"))
    patch.setattr(host.pool, "move_kv_cache", move_kv_cache)


@mutant("page tables are kept between steps", 8, scenarios.moved)
def _kept_table(script: Script, patch: MonkeyPatch) -> None:
    init, kept = planner.StepPlan.__init__, {}

    def remember(self: Any, rows: Any, *args: Any) -> None:
        init(self, rows, *args)
        known = kept.setdefault(tuple(rows), self.unit_table)
        self.unit_table = torch.cat((known, self.unit_table[:, known.shape[1] :]), 1)

    patch.setattr(planner.StepPlan, "__init__", remember)


@mutant("a page is started anew only once", 9, scenarios.flushed)
def _once(script: Script, patch: MonkeyPatch) -> None:
    forget, started = PageMetadata._forget, set[int]()

    def once(self: PageMetadata, units: torch.Tensor, pages: torch.Tensor) -> None:
        fresh = torch.tensor([unit not in started for unit in units.tolist()], dtype=torch.bool)
        started.update(units.tolist())
        forget(self, units[fresh], pages)

    patch.setattr(PageMetadata, "_forget", once)


@mutant("fields of the next layer are read", 10, scenarios.grow)
def _layer(script: Script, patch: MonkeyPatch) -> None:
    backend = script.host.backend

    class Shifted:
        def fields(self, summary: str, layer: int) -> torch.Tensor:
            metadata: PageMetadata = backend.seal.metadata
            return metadata.fields(summary, (layer + 1) % metadata.layout.num_layers)

    patch.setattr(backend, "metadata", Shifted())


@mutant("KV heads are swapped", 10, scenarios.grow)
def _heads(script: Script, patch: MonkeyPatch) -> None:
    write = script.host.backend.ops.summarise
    patch.setattr(
        script.host.backend.ops,
        "summarise",
        lambda summary, keys, fields, units: write(summary, keys.flip(1), fields, units),
    )


@mutant("only the first layer is summarised", 10, scenarios.grow)
def _one_layer(script: Script, patch: MonkeyPatch) -> None:
    write = StepSeal.summarise

    def summarise(self: StepSeal, layer: int, keys: torch.Tensor) -> None:
        if layer == 0:
            write(self, layer, keys)
        else:
            self.metadata.seal(self.pending)

    patch.setattr(StepSeal, "summarise", summarise)


@mutant("metadata is made before the step's K is written", 11, scenarios.grow)
def _too_soon(script: Script, patch: MonkeyPatch) -> None:
    backend = script.host.backend
    write, summarise = backend._write, backend._summarise

    def summarise_then_write(k: Any, v: Any, layer: Any, batch: Any, save: bool) -> None:
        summarise(layer)
        write(k, v, layer, batch, save)

    patch.setattr(backend, "_write", summarise_then_write)
    patch.setattr(backend, "_summarise", nothing)


@mutant("bounds are those of coarsely rounded keys", 12, scenarios.grow)
def _rounded(script: Script, patch: MonkeyPatch) -> None:
    write = script.host.backend.ops.summarise

    def summarise(summary: Any, keys: torch.Tensor, fields: Any, units: Any) -> None:
        coarse = (keys / 3).to(torch.float8_e4m3fn).to(keys.dtype) * 3
        write(summary, coarse, fields, units)

    patch.setattr(script.host.backend.ops, "summarise", summarise)


@mutant("rows with the same tokens share one page table", 13, scenarios.namespaces)
def _same_tokens(script: Script, patch: MonkeyPatch) -> None:
    init = planner.StepPlan.__init__

    def share(self: Any, *args: Any) -> None:
        init(self, *args)
        self.unit_table = self.unit_table[:1].expand_as(self.unit_table)

    patch.setattr(planner.StepPlan, "__init__", share)


@mutant("a prefill does not start pages anew", 14, scenarios.new_weights)
def _prefill(script: Script, patch: MonkeyPatch) -> None:
    forget = PageMetadata._forget

    def of_decode(self: PageMetadata, units: torch.Tensor, pages: torch.Tensor) -> None:
        if len(pages) == 1:
            forget(self, units, pages)

    patch.setattr(PageMetadata, "_forget", of_decode)


@mutant("held scores outlive their request", 15, scenarios.row_reuse)
def _held(script: Script, patch: MonkeyPatch) -> None:
    begin = HeldScores.begin_step
    patch.setattr(
        HeldScores,
        "begin_step",
        lambda self, row, who, length, every: begin(self, row, type(who)(), 100, every),
    )


@mutant("held scores outlive a retraction", 15, scenarios.period_retracted)
def _held_back(script: Script, patch: MonkeyPatch) -> None:
    begin = HeldScores.begin_step

    def begin_step(self: HeldScores, row: int, owner: Any, *args: int) -> None:
        begin(self, row, owner[0], *args)

    patch.setattr(HeldScores, "begin_step", begin_step)


@mutant("the whole last unit is read", 16, scenarios.grow)
def _tail(script: Script, patch: MonkeyPatch) -> None:
    plan_rows = planner.plan_rows

    def whole_tail(lengths: Any, options: Any, geometry: Geometry, units: Any) -> Any:
        plan = plan_rows(lengths, options, geometry, units)
        return replace(plan, tail=plan.tail * 0 + geometry.unit_size)

    patch.setattr(planner, "plan_rows", whole_tail)


@mutant("only the first slot of a page ends its life", 17, scenarios.taken_back)
def _middle(script: Script, patch: MonkeyPatch) -> None:
    def first_slots(self: PageMetadata, slots: torch.Tensor) -> None:
        self.start_pages(self.geometry.page_starts(slots))

    patch.setattr(PageMetadata, "overwrite", first_slots)


PAGE = scenarios.PAGE


def unannounced(script: Script, name: str) -> Callable[..., Any]:
    """A function of the allocator without our hook behind it."""
    announced = getattr(script.host.allocator, name)

    def call(*args: Any) -> Any:
        listen_to_allocator(nothing)
        slots = announced(*args)
        listen_to_allocator(script.host.backend.seal.hand_out)
        return slots

    return call


@pytest.mark.parametrize("core", ("rust", "python"))
def test_correct_code_passes_every_scenario(core: str, sglang: None) -> None:
    """No check is triggered by the code as it is."""
    for scenario in {m.scenario for m in MUTANTS}:
        scenario(Script(core))


def test_there_is_a_mutant_for_every_threat() -> None:
    """Threats 1-14, and three of our own: held scores, the tail, and steps that are taken back."""
    assert {m.threat for m in MUTANTS} == set(range(1, 18))


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_every_mutant_is_caught(number: int, sglang: None, monkeypatch: MonkeyPatch) -> None:
    """R4: within the decode step that would read stale metadata."""
    bad = MUTANTS[number]
    script = Script("rust")
    bad.install(script, monkeypatch)
    with pytest.raises(Broken) as caught:
        bad.scenario(script)
    why = str(caught.value)[:48]
    print(f"R4 threat {bad.threat}: {bad.name} | {bad.scenario.__name__}, {script.move} | {why}")
