"""Fields and stamps by themselves: how large, where, and what a page's new life forgets."""

import pytest
import torch

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata import PageMetadata
from sgl_sparsekv.page_metadata.layout import KeyLayout
from sgl_sparsekv.page_metadata.pool import BYTES_PER_SLOT, bytes_per_unit
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.shadowkv import LANDMARK, MISFIT
from sgl_sparsekv.summaries import BoundSummary

LAYOUT = KeyLayout(3, 2, 8, torch.bfloat16)
SUMMARIES = (Quest.summary, LANDMARK, MISFIT)
SEGMENT = BoundSummary("bounds", 64, Quest.summary)


class Room:
    """Counts how often it was entered and what was made inside."""

    def __init__(self) -> None:
        self.entered = 0

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *_: object) -> None: ...


def metadata_of(device: str = "cpu", room: Room | None = None) -> PageMetadata:
    """3 pages of 4 units of 16 tokens."""
    return PageMetadata(Geometry(64, 16), SUMMARIES, LAYOUT, 3 * 64, device, (SEGMENT,), room)


def test_bytes_of_a_unit_are_those_of_its_fields_and_its_stamp() -> None:
    """Per layer and head: 2 bounds of 8, 2 landmarks of 8, and 2 misfits, all of 2 bytes."""
    assert bytes_per_unit(LAYOUT, SUMMARIES, 16) == 3 * 2 * (16 + 16 + 2) * 2 + 1
    assert bytes_per_unit(LAYOUT, (), 16) == 1
    assert isinstance(bytes_per_unit(LAYOUT, SUMMARIES, 16), int)


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_fields_lie_by_layer_and_unit_on_the_pools_device(device: str) -> None:
    metadata = metadata_of(device)
    assert metadata.num_units == 12 and metadata.last_layer == 2 and metadata.poison is False
    shapes = {"min_max": (12, 2, 2, 8), "landmark": (24, 2, 1, 8), "misfit": (24, 2, 1, 1)}
    everything = [metadata.sealed, metadata.budgets]
    for name, shape in shapes.items():
        fields = [metadata.fields(name, layer) for layer in range(3)]
        assert {field.shape for field in fields} == {shape}
        assert {field.dtype for field in fields} == {torch.bfloat16}
        everything += fields
    everything += [array for layer in metadata.records["bounds"].arrays for array in layer.values()]
    assert {one.device.type for one in everything} == {device}
    assert metadata.nbytes == sum(one.nbytes for one in everything)
    assert metadata.sealed.dtype == torch.bool and metadata.sealed.shape == (12,)
    assert metadata.budgets.dtype == torch.int32 and len(metadata.budgets) == 192
    assert metadata.budgets.element_size() == BYTES_PER_SLOT
    assert device == "meta" or not any(bool(one.any()) for one in everything)


def test_what_may_be_taken_away_is_made_in_its_room() -> None:
    room = Room()
    assert metadata_of(room=room).records["bounds"].capacity == 4 and room.entered == 1


def sealed(metadata: PageMetadata) -> list[int]:
    found: list[int] = metadata.sealed.nonzero().flatten().tolist()
    return found


def full() -> PageMetadata:
    """All sealed, and page 1 ends a segment."""
    metadata = metadata_of()
    metadata.seal(torch.arange(12))
    records = metadata.records["bounds"]
    records.begin_step()
    records.reserve(torch.tensor([0, 1]).numpy())
    records.seal()
    return metadata


def test_a_page_that_starts_anew_loses_its_stamps_and_its_record() -> None:
    metadata = full()
    metadata.start_pages(torch.tensor([1]))
    assert sealed(metadata) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert metadata.records["bounds"].held == {0: 0}
    metadata.seal(torch.tensor([5]))
    assert sealed(metadata) == [0, 1, 2, 3, 5, 8, 9, 10, 11]


def test_a_slot_that_is_written_ends_its_unit_and_a_first_slot_its_page() -> None:
    metadata = full()
    metadata.overwrite(torch.tensor([64 + 17, 64 + 40]))
    assert sealed(metadata) == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert metadata.records["bounds"].held == {0: 0}
    metadata.overwrite(torch.tensor([128]))
    assert sealed(metadata) == [0, 1, 2, 3, 4, 7]


def test_units_without_a_stamp_are_told_once_in_order() -> None:
    metadata = full()
    metadata.sealed[[2, 7, 9]] = False
    assert metadata.unsealed(torch.tensor([9, 3, 2, 9, 2, 0])).tolist() == [2, 9]


def test_fields_that_lost_their_stamp_may_be_poisoned() -> None:
    """In every layer, where summaries of smaller units have two; what stays is untouched."""
    metadata = full()
    metadata.start_pages(torch.tensor([2]))
    assert not metadata.fields("min_max", 0).isnan().any()
    metadata.poison = True
    metadata.overwrite(torch.tensor([64 + 17]))
    for layer in range(3):
        for name, units in (("min_max", [5]), ("landmark", [10, 11]), ("misfit", [10, 11])):
            poisoned = metadata.fields(name, layer).isnan().flatten(1)
            assert poisoned.all(1).nonzero().flatten().tolist() == units
            assert poisoned.any(1).nonzero().flatten().tolist() == units
