"""A segment in one step: found, indexed once for whoever reads it, sealed behind the last layer."""

from typing import Any

import pytest
import torch

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata import SINKS, SegmentRecords, StepIndex
from sgl_sparsekv.page_metadata.indexing import RowSegments
from sgl_sparsekv.page_metadata.layout import KeyLayout
from sgl_sparsekv.segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.summaries import BoundSummary, CodeSummary

PAGE, SEGMENT, HEADS, DIM, SLOTS = 16, 32, 2, 4, 20 * 16
LAYOUT, GEOMETRY = KeyLayout(2, HEADS, DIM, torch.float32), Geometry(PAGE, PAGE)
BOUNDS = BoundSummary("bounds", SEGMENT, Quest.summary)
CODES = CodeSummary("codes", SEGMENT, 2, 4, False, 1, None, lambda keys, skip: (keys, keys))
KEYS = [torch.randn(SLOTS, HEADS, DIM, generator=torch.Generator().manual_seed(7)) for _ in "ab"]


class Device:
    """Notes what it is asked to index."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def index_segments(self, summary: CodeSummary, keys: Any, *rest: Any) -> None:
        self.asked.append(rest)


def row(*pages: int, tokens: int, written: int, read: bool = False) -> RowSegments:
    slots = (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()[:tokens]
    return RowSegments(slots.int(), written, read)


def index_of(summary: Any = BOUNDS, slots: int = SLOTS) -> tuple[StepIndex, Any]:
    device: Any = Device()
    records = SegmentRecords(summary, LAYOUT, GEOMETRY, slots, "cpu")
    return StepIndex(records, GEOMETRY, device, last_layer=1), device


def run(index: StepIndex, *rows: RowSegments) -> list[list[int]]:
    """A whole step; the table that its rows got."""
    table = index.begin_step(rows)
    for layer, keys in enumerate(KEYS):
        index.summarise(layer, (keys, keys))
    assert table.dtype == torch.int32
    found: list[list[int]] = table.tolist()
    return found


def test_a_segment_is_indexed_when_its_last_token_is_written() -> None:
    """70 tokens are two whole segments, which end with pages 2 and 4."""
    index, _ = index_of()
    assert run(index, row(1, 2, 3, 4, 5, tokens=70, written=64)) == [[-1, -1]]
    assert index.records.held == {}
    assert run(index, row(1, 2, 3, 4, 5, tokens=70, written=63)) == [[-1, 0]]
    assert index.records.held == {4: 0}
    assert run(index, row(1, 2, 3, 4, 5, tokens=71, written=70)) == [[-1, 0]]
    assert run(index, row(1, 2, 3, 4, 5, tokens=70, written=0)) == [[1, 0]]
    assert index.records.held == {2: 1, 4: 0} and index.records.built == 2


def test_a_row_that_reads_records_gets_those_that_are_missing() -> None:
    index, _ = index_of()
    assert run(index, row(1, 2, 3, 4, tokens=64, written=64, read=True)) == [[0, 1]]
    assert index.records.held == {2: 0, 4: 1}


def test_rows_on_one_prefix_share_what_a_step_builds() -> None:
    """Each row's table is as long as the longest."""
    index, _ = index_of()
    rows = (
        row(1, 2, 3, 4, 5, tokens=65, written=0),
        row(1, 2, 6, tokens=40, written=0),
        row(7, tokens=5, written=0),
        row(1, 2, 8, 9, 10, 11, tokens=96, written=0, read=True),
    )
    assert run(index, *rows) == [[0, 1, -1], [0, -1, -1], [-1, -1, -1], [0, 2, 3]]
    assert index.records.built == 4
    assert index.begin_step([]).shape == (0, 0)
    assert run(index, row(7, tokens=5, written=0)) == [[]]


def test_where_a_row_has_no_segment_it_reads_nobodys() -> None:
    """Also while page 1 ends one."""
    index, _ = index_of()
    rows = row(0, 1, tokens=32, written=0), row(4, 5, 6, 7, tokens=64, written=0)
    assert run(index, *rows) == [[0, -1], [1, 2]] == run(index, *rows)


def test_where_there_is_no_room_the_others_get_theirs() -> None:
    index, _ = index_of(slots=4 * PAGE)
    assert index.records.capacity == 3
    long = row(0, 1, 2, 3, 0, 1, 2, 3, tokens=64, written=0)
    assert run(index, long) == [[0, 1]]
    short, _ = index_of(slots=2 * PAGE)
    short.records.capacity = 1
    assert short.begin_step([row(0, 1, tokens=32, written=0)]).tolist() == [[0]]


def test_records_hold_the_keys_of_their_segment_layer_by_layer() -> None:
    """And count as written behind the last layer."""
    index, _ = index_of()
    pages = row(3, 1, 6, 2, tokens=64, written=0)
    index.begin_step([pages])
    for layer, keys in enumerate(KEYS):
        assert index.records.held == {}
        index.summarise(layer, (keys, keys))
        for record, part in enumerate(pages.slots.long().split(SEGMENT)):
            wanted = torch.stack((keys[part].amin(0), keys[part].amax(0)), 1)
            assert torch.equal(index.records.arrays[layer]["planes"][record], wanted)
    assert index.records.held == {1: 0, 2: 1}


def test_a_step_that_builds_nothing_writes_and_seals_nothing() -> None:
    index, device = index_of(CODES)
    index.summarise(1, (KEYS[1], KEYS[1]))  # before its first step
    run(index, row(1, 2, tokens=31, written=0))
    assert device.asked == [] and index.records.built == 0
    index.summarise(0, (KEYS[0], KEYS[0]))
    assert device.asked == []


def test_only_a_sequence_begins_with_sinks() -> None:
    """What is asked of a device: slots, tokens not to learn from, where to, which records."""
    index, device = index_of(CODES)
    run(index, row(1, 2, 3, 4, tokens=64, written=0), row(5, 6, tokens=32, written=0))
    (slots, skips, into, targets), _ = device.asked
    assert slots.dtype == skips.dtype == targets.dtype == torch.int64
    assert slots[:, 0].tolist() == [16, 48, 80] and slots.shape == (3, SEGMENT)
    assert skips.tolist() == [SINKS, 0, SINKS] and targets.tolist() == [0, 1, 2]
    assert into.codes is index.records.arrays[0]["codes"]
    assert device.asked[1][2].codes is index.records.arrays[1]["codes"]


def test_records_are_read_through_the_table_of_a_group() -> None:
    table = torch.tensor([[1, 0]], dtype=torch.int32)
    bounds = index_of()[0]
    seen = bounds.view(1, table)
    assert isinstance(seen, SegmentBounds) and seen.segment_size == SEGMENT
    assert seen.planes is bounds.records.arrays[1]["planes"] and seen.table is table
    codes = index_of(CODES)[0]
    read = codes.view(1, table)
    assert isinstance(read, SegmentIndex) and read.table is table
    assert read.codes is codes.records.arrays[1]["codes"]
    assert read.codebooks is codes.records.arrays[1]["codebooks"]
    rests = index_of(residuals(SEGMENT, 2))[0]
    coded, arrays = rests.view(1, table), rests.records.arrays[1]
    assert isinstance(coded, ResidualIndex) and coded.table is table
    assert all(getattr(coded, name) is array for name, array in arrays.items())


@pytest.mark.parametrize(
    ("nth", "record", "first"), [(0, 0, 16), (1, 1, 48), (2, 2, 80), (4, 1, 48)]
)
def test_a_record_that_is_not_its_keys_is_told(nth: int, record: int, first: int) -> None:
    """Of the step's segments that have one, counted over rows, round and round."""
    index, _ = index_of()
    rows = row(1, 2, 3, 4, tokens=64, written=0), row(5, 6, tokens=33, written=0)
    run(index, row(9, tokens=16, written=0), *rows)
    assert index.mismatches(1, (KEYS[1], KEYS[1]), nth) == (1, [])
    keys = KEYS[1].clone()
    keys[first : first + SEGMENT] += 100
    compared, (found,) = index.mismatches(1, (keys, keys), nth)
    assert compared == 1 and (found.summary, found.layer, found.unit) == ("bounds", 1, record)
    assert found.worst == HEADS * 2 * DIM, "minima and maxima"
    assert index.mismatches(0, (keys, keys), nth)[1], "the other layer has keys of its own"


def test_the_first_segment_is_indexed_again_as_it_was() -> None:
    index, device = index_of(CODES)
    run(index, row(1, 2, 3, 4, tokens=64, written=0))
    del device.asked[:]
    for nth, skip in ((0, SINKS), (1, 0)):
        index.mismatches(0, (KEYS[0], KEYS[0]), nth)
        slots, skips, _, targets = device.asked[nth]
        assert slots.shape == (1, SEGMENT) and int(slots[0, 0]) == 16 + nth * SEGMENT
        assert (skips.tolist(), targets.tolist()) == ([skip], [0])


def test_a_step_without_records_has_nothing_to_compare() -> None:
    index, _ = index_of()
    assert index.mismatches(0, (KEYS[0], KEYS[0]), 0) == (0, [])
    run(index, row(1, tokens=16, written=0))
    assert index.mismatches(0, (KEYS[0], KEYS[0]), 3) == (0, [])
