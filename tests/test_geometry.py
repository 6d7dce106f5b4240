"""Slots, units and pages: one module does the arithmetic, and this is what it means."""

import pytest
import torch

from sgl_sparsekv.geometry import PAGE_SIZES, UNIT_SIZE, Geometry, ceil_div

GEOMETRIES = [Geometry(page, min(page, UNIT_SIZE)) for page in (4, *PAGE_SIZES)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_units_and_tail_add_up_to_the_tokens(geometry: Geometry) -> None:
    """Full units, the tail and their number, for every length around page borders."""
    unit = geometry.unit_size
    for tokens in range(1, 3 * geometry.page_size + 2):
        units, tail = geometry.num_units(tokens), geometry.tail_length(tokens)
        assert (units - 1) * unit + tail == tokens and 1 <= tail <= unit
        assert (
            geometry.full_units(tokens) * unit <= tokens < (geometry.full_units(tokens) + 1) * unit
        )
        assert units - geometry.full_units(tokens) == (tokens % unit > 0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_unit_completes_once_and_every_page_starts_once(geometry: Geometry) -> None:
    """However a page's slots are cut into steps."""
    slots = torch.arange(geometry.page_size, 4 * geometry.page_size)
    whole_units = geometry.completed_units(slots)
    whole_pages = geometry.page_starts(slots)
    assert whole_pages.tolist() == [1, 2, 3]
    assert whole_units.tolist() == geometry.units_of_pages(whole_pages).tolist()
    for size in (1, 3, geometry.unit_size, geometry.page_size - 1):
        steps = slots.split(size)
        assert torch.equal(torch.cat([geometry.completed_units(s) for s in steps]), whole_units)
        assert torch.equal(torch.cat([geometry.page_starts(s) for s in steps]), whole_pages)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_unit_of_the_sequence_is_a_unit_of_the_pool(geometry: Geometry) -> None:
    """Because a page holds whole units and slots follow positions within a page."""
    pages = torch.tensor([7, 2, 5])
    slots = (pages[:, None] * geometry.page_size + torch.arange(geometry.page_size)).reshape(-1)
    table = geometry.unit_table(slots)
    assert torch.equal(table, geometry.units_of_pages(pages))
    assert torch.equal(table.repeat_interleave(geometry.unit_size), geometry.unit_of(slots))
    assert torch.equal(geometry.page_of(slots).unique(), pages.sort().values)
    cut = slots[: geometry.page_size + 1]
    assert geometry.unit_table(cut).numel() == geometry.num_units(cut.numel())


def test_pool_units_cover_every_slot() -> None:
    """The dummy page included."""
    geometry = Geometry(64)
    assert geometry.pool_units(64 * 9) == 36
    assert int(geometry.unit_of(torch.tensor(64 * 9 - 1))) == 35


def test_units_may_be_single_tokens() -> None:
    geometry = Geometry(16, 1)
    assert geometry.units_per_page == 16 and geometry.num_units(7) == geometry.full_units(7) == 7


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64))
@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_indices_keep_the_type_and_device_of_what_they_are_made_of(
    device: str, dtype: torch.dtype
) -> None:
    """A device without memory shows what would be made on the CPU beside it."""
    geometry, numbers = Geometry(64, 16), torch.arange(8, dtype=dtype, device=device)
    made = [
        geometry.finer(numbers, 4), geometry.units_of_pages(numbers), geometry.unit_of(numbers),
        geometry.page_of(numbers), geometry.unit_table(numbers), geometry.unit_table(numbers, 8),
    ]  # fmt: skip
    assert {(one.device.type, one.dtype) for one in made} == {(device, dtype)}
    assert [one.numel() for one in made] == [8 * 4, 8 * 4, 8, 8, 1, 1]


@pytest.mark.parametrize(("page", "unit"), [(24, 16), (8, 16), (16, 0)])
def test_a_page_must_hold_whole_units(page: int, unit: int) -> None:
    """Anything else is refused with the rule and the value."""
    with pytest.raises(ValueError, match=f"multiple of unit_size {unit}, got {page}"):
        Geometry(page, unit)


def test_ceil_div_rounds_up() -> None:
    """Exactly at multiples, up between them."""
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64))
def test_smaller_units_lie_inside_units_in_order(dtype: torch.dtype) -> None:
    geometry, units = Geometry(64, 16), torch.tensor([3, 0], dtype=dtype)
    finer = geometry.finer(units, 8)
    assert finer.tolist() == [6, 7, 0, 1] and finer.dtype == dtype
    assert geometry.finer(units, 4).tolist() == [12, 13, 14, 15, 0, 1, 2, 3]
    assert geometry.finer(units, None) is units and geometry.finer(units, 16) is units


def test_a_segment_is_known_by_its_last_page() -> None:
    """Of slots in position order, whatever pages they lie on; what is no whole segment has none."""
    geometry = Geometry(16, 16)
    pages = torch.tensor([7, 2, 9, 4, 5])
    slots = (pages[:, None] * 16 + torch.arange(16)).reshape(-1)
    assert geometry.segment_pages(slots, 32).tolist() == [2, 4]
    assert geometry.segment_pages(slots, 16).tolist() == pages.tolist()
    assert geometry.segment_pages(slots[:31], 32).tolist() == []
    geometry.require_whole_pages(32)
    with pytest.raises(ValueError) as refused:
        geometry.require_whole_pages(24)
    assert str(refused.value) == "a segment of 24 tokens is no whole pages of 16"
