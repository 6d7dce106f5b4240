"""Segment records by themselves: whose memory they are, and who gives way when it is short."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata.layout import KeyLayout
from sgl_sparsekv.page_metadata.records import (
    SegmentRecords,
    bytes_per_record,
    record_capacity,
    write_records,
)
from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.summaries import BoundSummary, CodeSummary, SegmentSummary

LAYERS, HEADS, DIM = 2, 3, 8
LAYOUT = KeyLayout(LAYERS, HEADS, DIM, torch.bfloat16)
BOUNDS = BoundSummary("bounds", 64, Quest.summary)
CODES = CodeSummary("codes", 64, 2, 4, False, 1, None, lambda keys, skip: (keys, keys))


def records_of(
    summary: SegmentSummary = BOUNDS, slots: int = 100, device: str = "cpu"
) -> SegmentRecords:
    """Of 7 pages; 100 slots have room for two records of 64 tokens."""
    return SegmentRecords(summary, LAYOUT, Geometry(16, 16), slots, device)


def reserve(records: SegmentRecords, *pages: int) -> list[int]:
    found: list[int] = records.reserve(np.array(pages, dtype=np.int64)).tolist()
    return found


def read(records: SegmentRecords, *pages: int) -> list[int]:
    found: list[int] = records.read(np.array(pages)).tolist()
    return found


def test_there_is_a_record_for_every_segment_and_a_quarter_more() -> None:
    assert [record_capacity(slots, 32) for slots in (1024, 100, 128, 129)] == [40, 4, 5, 6]


def test_bytes_are_those_of_the_arrays() -> None:
    """A code takes one byte, whatever the keys are."""
    assert bytes_per_record(BOUNDS, LAYOUT) == LAYERS * HEADS * (2 * DIM * 2)
    assert bytes_per_record(CODES, LAYOUT) == LAYERS * HEADS * (2 * 64 + 2 * 4 * 4 * 2)
    for summary in (BOUNDS, CODES):
        records = records_of(summary)
        held = [array.nbytes for layer in records.arrays for array in layer.values()]
        assert records.nbytes == sum(held)


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_arrays_are_zero_and_lie_on_the_pools_device(device: str) -> None:
    records = records_of(CODES, device=device)
    assert len(records.arrays) == LAYERS and records.capacity == 2
    for layer in records.arrays:
        assert layer["codes"].shape == (2, HEADS, 2, 64) and layer["codes"].dtype == torch.uint8
        assert layer["codebooks"].shape == (2, HEADS, 2, 4, 4)
        assert layer["codebooks"].dtype == torch.bfloat16
        assert {array.device.type for array in layer.values()} == {device}
        assert device == "meta" or not any(bool(array.any()) for array in layer.values())
    assert records.device.type == device


def test_a_segment_holds_whole_pages() -> None:
    with pytest.raises(ValueError, match="24 tokens is no whole pages of 16"):
        records_of(BoundSummary("odd", 24, Quest.summary))


def test_the_last_page_of_a_pool_has_a_place() -> None:
    """96 of 100 slots are 6 pages; the seventh is cut short."""
    assert read(records_of(), 0, 6) == [-1, -1]
    with pytest.raises(IndexError):
        read(records_of(), 7)


def test_a_record_is_found_once_it_is_sealed() -> None:
    records = records_of()
    records.begin_step()
    assert reserve(records, 5, 6) == [0, 1]
    assert read(records, 5, 6) == [-1, -1] and records.held == {} and records.built == 0
    records.seal()
    assert records.held == {5: 0, 6: 1} and records.built == 2
    assert records.read(np.array([[6, 2], [0, 5]])).tolist() == [[1, -1], [-1, 0]]
    records.seal()
    assert records.built == 2, "a seal ends what was reserved"
    assert (records.evicted, records.refused) == (0, 0)


def test_what_a_step_that_broke_off_was_building_is_forgotten() -> None:
    records = records_of()
    records.begin_step()
    assert reserve(records, 5) == [0]
    records.begin_step()
    assert reserve(records, 6) == [0]
    records.seal()
    assert records.held == {6: 0} and records.built == 1


def test_a_step_reserves_no_record_twice() -> None:
    records = records_of()
    records.begin_step()
    assert [reserve(records, page) for page in (1, 2, 3)] == [[0], [1], [-1]]
    assert (records.evicted, records.refused) == (0, 1)
    records.seal()
    assert records.held == {1: 0, 2: 1} and records.built == 2


def test_what_was_read_longest_ago_gives_way_and_what_the_step_reads_does_not() -> None:
    records = records_of()
    records.begin_step()
    reserve(records, 1, 2)
    records.seal()
    records.begin_step()
    assert read(records, 1) == [0]
    records.begin_step()
    assert reserve(records, 3) == [1] and records.held == {1: 0}
    records.seal()
    assert records.held == {1: 0, 3: 1}
    assert (records.built, records.evicted, records.refused) == (3, 1, 0)
    records.begin_step()
    assert read(records, 3) == [1]
    assert reserve(records, 4, 5) == [0, -1] and records.held == {3: 1}
    records.seal()
    assert (records.built, records.evicted, records.refused) == (4, 2, 1)
    assert reserve(records, 6) == [-1], "what this step built is read in it"
    assert (records.evicted, records.refused) == (2, 2)


def test_of_records_of_one_age_the_first_gives_way() -> None:
    """60 records, every third of them read in each of three steps."""
    records = records_of(slots=64 * 48)
    assert records.capacity == 60
    records.begin_step()
    reserve(records, *range(60))
    records.seal()
    for third in range(3):
        records.begin_step()
        read(records, *range(third, 60, 3))
    records.begin_step()
    assert reserve(records, *range(60, 84)) == [*range(0, 60, 3), *range(1, 13, 3)]


def test_pages_that_start_anew_lose_their_records_and_no_others() -> None:
    records = records_of()
    records.begin_step()
    reserve(records, 3, 4)
    records.seal()
    records.drop(torch.tensor([4, 6, 0]))
    assert records.held == {3: 0}
    records.begin_step()
    assert reserve(records, 2) == [1] and records.evicted == 0
    records.seal()
    records.drop(torch.tensor([], dtype=torch.int64))
    assert records.held == {2: 1, 3: 0}


def test_bounds_of_a_segment_are_those_of_one_large_unit() -> None:
    keys, slots = (
        torch.randn(200, HEADS, DIM),
        torch.stack((torch.arange(64), torch.arange(64) + 99)),
    )
    planes, nothing = torch.zeros(4, HEADS, 2, DIM), torch.zeros(2, dtype=torch.int64)
    into = {"planes": planes}
    write_records(None, BOUNDS, (keys, keys), slots, nothing, into, torch.tensor([3, 1]))  # type: ignore[arg-type]
    for record, rows in ((3, keys[:64]), (1, keys[99:163])):
        assert torch.equal(planes[record], torch.stack((rows.amin(0), rows.amax(0)), 1))
    assert not planes[[0, 2]].any()


def test_clusters_are_written_by_the_device() -> None:
    """Where it is told to."""
    given: list[Any] = []
    ops: Any = SimpleNamespace(index_residuals=lambda *args: given.extend(args))
    summary, keys = residuals(64, 2), torch.randn(200, HEADS, DIM)
    slots, skips, into = torch.zeros(2, 64), torch.tensor([16, 0]), {"codes": keys}
    targets = torch.tensor([1, 0])
    write_records(ops, summary, (keys, keys), slots, skips, into, targets)
    wanted = (summary, slots, skips, into, targets)
    assert all(one is other for one, other in zip((given[0], *given[2:]), wanted, strict=True))
    assert [part is keys for part in given[1]] == [True, True]


def test_codes_are_written_by_the_device() -> None:
    given: list[Any] = []

    class Device:
        def index_segments(self, *args: Any) -> None:
            given.extend(args)

    records = records_of(CODES)
    keys, slots, skips = torch.randn(200, HEADS, DIM), torch.zeros(2, 64), torch.tensor([16, 0])
    targets = torch.tensor([1, 0])
    ops: Any = Device()
    write_records(ops, CODES, (keys, keys), slots, skips, records.arrays[1], targets)
    summary, *tensors, index, written = given
    assert summary is CODES and written is targets
    assert [one is other for one, other in zip(tensors, (keys, slots, skips), strict=True)] == [
        True
    ] * 3
    assert index.codes is records.arrays[1]["codes"]
    assert index.codebooks is records.arrays[1]["codebooks"]
    assert index.table.tolist() == [[1, 0]] and index.table.dtype == torch.int32
