"""R4 for segment records: one mutant per way in which a record can be wrong, each caught."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import scenarios
from helpers.invariants import Broken
from helpers.scenarios import Script
from pytest import MonkeyPatch

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata import SINKS, PageMetadata, SegmentRecords, StepIndex

Scenario = Callable[[Script], None]
Install = Callable[[Script, MonkeyPatch], None]


def keyed_by_first_page(script: Script, patch: MonkeyPatch) -> None:
    """The first page of a segment is its key: a branch inside the segment finds the other's."""
    patch.setattr(
        Geometry,
        "segment_pages",
        lambda self, slots, size: slots[: len(slots) // size * size : size] // self.page_size,
    )


def kept_when_pages_start_anew(script: Script, patch: MonkeyPatch) -> None:
    """Pages that start anew keep their records."""
    patch.setattr(SegmentRecords, "drop", lambda self, pages: None)


def kept_when_a_page_is_written_in_its_middle(script: Script, patch: MonkeyPatch) -> None:
    """Only the first slot of a page ends what was known of it."""

    def first_slots(self: PageMetadata, slots: torch.Tensor) -> None:
        self.start_pages(self.geometry.page_starts(slots))

    patch.setattr(PageMetadata, "overwrite", first_slots)


def whole_three_tokens_early(script: Script, patch: MonkeyPatch) -> None:
    """A segment counts as whole before its last tokens are written."""
    begin = StepIndex.begin_step

    def begin_step(self: StepIndex, rows: Any) -> torch.Tensor:
        for row in rows:
            more = torch.cat((row.slots, row.slots[-1:].expand(3)))
            object.__setattr__(row, "slots", more)
        return begin(self, rows)

    patch.setattr(StepIndex, "begin_step", begin_step)


def not_made_sure_of(script: Script, patch: MonkeyPatch) -> None:
    """Segments that were filled unseen stay without a record."""
    begin = StepIndex.begin_step

    def begin_step(self: StepIndex, rows: Any) -> torch.Tensor:
        for row in rows:
            object.__setattr__(row, "read", False)
        return begin(self, rows)

    patch.setattr(StepIndex, "begin_step", begin_step)


def sealed_behind_the_first_layer(script: Script, patch: MonkeyPatch) -> None:
    """A record counts as written once the first layer is."""
    summarise = StepIndex.summarise

    def early(self: StepIndex, layer: int, keys: torch.Tensor) -> None:
        summarise(self, layer, keys)
        self.records.seal()

    patch.setattr(StepIndex, "summarise", early)


def every_segment_has_sinks(script: Script, patch: MonkeyPatch) -> None:
    """The first tokens of every segment are left out when clusters are fitted."""
    note = StepIndex._note

    def noted(self: StepIndex, rows: Any, built: Any) -> None:
        note(self, rows, built)
        self._skips = torch.full_like(self._skips, SINKS)

    patch.setattr(StepIndex, "_note", noted)


def records_of_a_batch_are_mixed_up(script: Script, patch: MonkeyPatch) -> None:
    """Segments that one step indexes are written to each other's records."""
    note = StepIndex._note

    def noted(self: StepIndex, rows: Any, built: Any) -> None:
        note(self, rows, built)
        self._targets = self._targets.roll(1)

    patch.setattr(StepIndex, "_note", noted)


def one_that_is_read_gives_way(script: Script, patch: MonkeyPatch) -> None:
    """Short of memory, a record of the running step is overwritten."""
    read = SegmentRecords.read

    def unread(self: SegmentRecords, pages: Any) -> Any:
        records = read(self, pages)
        self._read[:] = 0
        self._page[records[records >= 0]] = -1  # counts as free
        return records

    patch.setattr(SegmentRecords, "read", unread)


def last_segment_is_the_first(script: Script, patch: MonkeyPatch) -> None:
    """A row's records are read in the wrong order."""
    begin = StepIndex.begin_step

    def begin_step(self: StepIndex, rows: Any) -> torch.Tensor:
        table = begin(self, rows)
        whole = [len(row.slots) // self.records.summary.segment_size for row in rows]
        for row, count in zip(table, whole, strict=True):
            row[:count] = row[:count].flip(0)
        return table

    patch.setattr(StepIndex, "begin_step", begin_step)


MUTANTS: tuple[tuple[Install, Scenario], ...] = (
    (keyed_by_first_page, scenarios.segment_branch),
    (kept_when_pages_start_anew, scenarios.segment_reuse),
    (whole_three_tokens_early, scenarios.segment_grows),
    (not_made_sure_of, scenarios.segment_load_back),
    (sealed_behind_the_first_layer, scenarios.segment_died),
    (every_segment_has_sinks, scenarios.segment_second_batch),
    (records_of_a_batch_are_mixed_up, scenarios.segment_second_batch),
    (one_that_is_read_gives_way, scenarios.segment_branch),
    (last_segment_is_the_first, scenarios.segment_second_batch),
    (kept_when_a_page_is_written_in_its_middle, scenarios.segment_taken_back),
)


@pytest.mark.parametrize("scenario", sorted({s for _, s in MUTANTS}, key=lambda s: s.__name__))
def test_correct_code_passes_every_scenario(scenario: Scenario, sglang: None) -> None:
    """No check is triggered by the code as it is."""
    scenario(Script("rust"))


@pytest.mark.parametrize(("install", "scenario"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
def test_every_mutant_is_caught(
    install: Install, scenario: Scenario, sglang: None, monkeypatch: MonkeyPatch
) -> None:
    """By an invariant, not by a crash."""
    script = Script("rust")
    install(script, monkeypatch)
    with pytest.raises(Broken) as caught:
        scenario(script)
    print(f"R4 {install.__name__}: {script.move} | {str(caught.value)[:60]}")


def test_memory_is_bounded_and_the_oldest_gives_way() -> None:
    """Where every record is read in the step, a segment stays without one."""
    records = SegmentRecords.__new__(SegmentRecords)
    records.capacity, records.built, records.evicted, records.refused = 2, 0, 0, 0
    records._step, records._pending = 0, {}
    records._of_page = np.full(9, -1, dtype=np.int64)
    records._page, records._read = np.full(2, -1, dtype=np.int64), np.zeros(2, dtype=np.int64)

    def step(*pages: int) -> list[int]:
        records.begin_step()
        found = records.read(np.array(pages))
        missing = np.array(pages)[found < 0]
        found[found < 0] = records.reserve(missing)
        records.seal()
        return [int(record) for record in found]

    assert step(5, 6) == [0, 1]
    assert step(6) == [1]
    assert step(6, 7) == [1, 0], "page 5 was read longest ago"
    assert step(6, 7, 8) == [1, 0, -1], "all are read"
    assert (records.built, records.evicted, records.refused) == (3, 1, 1)
    assert step(5) == [0] or step(5) == [1]
    records.drop(torch.tensor([5]))
    assert 5 not in records.held
