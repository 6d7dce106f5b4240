"""Where requests hold what they select on a device: who has a place, and whose it is."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from sgl_sparsekv.backend.held_places import NOWHERE, HeldPlaces
from sgl_sparsekv.backend.request_table import RequestEntry
from sgl_sparsekv.config import RequestOptions

PLACES = 3


def entry(serial: int, every: int = 4) -> RequestEntry:
    """A request that selects every few steps."""
    return RequestEntry(str(serial), RequestOptions(reselect_every=every), serial=serial)


@dataclass
class Device:
    """What the device is told."""

    asked: torch.Tensor = field(default_factory=lambda: torch.zeros(9, 3, dtype=torch.int32))

    def of(self, row: int) -> tuple[int, int, int]:
        """Steps of a period, place, and whose it is."""
        every, place, owner = self.asked[row].tolist()
        return every, place, owner


@pytest.fixture
def device() -> Device:
    """Nobody has asked for anything."""
    return Device()


@pytest.fixture
def places(device: Device) -> HeldPlaces:
    """Three of them."""
    return HeldPlaces(device.asked, PLACES)


def test_each_row_that_holds_has_a_place_and_a_number_of_its_own(
    places: HeldPlaces, device: Device
) -> None:
    entries = [entry(1), entry(2, every=7), entry(3, every=1)]
    places.bind([5, 2, 8], entries)
    told = [device.of(row) for row in (5, 2, 8)]
    assert [every for every, _, _ in told] == [4, 7, 1]
    assert sorted(place for _, place, _ in told[:2]) == [0, 1] and told[2][1] == NOWHERE
    assert len({owner for _, _, owner in told}) == 3
    places.bind([2, 5, 8], [entries[1], entries[0], entries[2]])
    assert [device.of(row) for row in (5, 2, 8)] == told, "nothing has changed"
    assert device.of(0) == (0, 0, 0), "and nobody else has asked"


def test_another_owner_has_another_number(places: HeldPlaces, device: Device) -> None:
    """Another request, the same with other options, and the same behind a retraction."""
    one = entry(1)
    others = [
        entry(2), replace(one, options=replace(one.options, budget=512)),
        replace(one, retractions=1), one,
    ]  # fmt: skip
    places.bind([5], [one])
    seen = {device.of(5)}
    for other in others:
        places.bind([5], [other])
        assert device.of(5) not in seen and device.of(5)[1] == 0
        seen.add(device.of(5))
    assert len({owner for _, _, owner in seen}) == len(others) + 1


def test_a_row_that_selects_in_every_step_gives_its_place_back(
    places: HeldPlaces, device: Device
) -> None:
    rows = [1, 2, 3]
    places.bind(rows, [entry(row) for row in rows])
    places.bind([2], [entry(4, every=1)])
    places.bind([4], [entry(5)])
    assert device.of(2)[1] == NOWHERE
    assert sorted(device.of(row)[1] for row in (1, 3, 4)) == [0, 1, 2]


def test_the_row_that_decoded_longest_ago_makes_room(places: HeldPlaces, device: Device) -> None:
    """It is told so, and holds again when it comes back, as somebody else."""
    entries = {row: entry(row) for row in range(1, 6)}

    def decode(*rows: int) -> None:
        places.bind(rows, [entries[row] for row in rows])

    decode(1, 2, 3)
    decode(1)
    before = device.of(2)
    decode(1, 4)
    assert device.of(2)[1] == NOWHERE and device.of(4)[1] == before[1]
    decode(2)
    assert device.of(3)[1] == NOWHERE and device.of(2)[1] >= 0 and device.of(2)[2] != before[2]
    decode(1, 2, 4, 5)
    assert device.of(5)[1] == NOWHERE, "rows of one step do not take places from each other"
    assert sorted(device.of(row)[1] for row in (1, 2, 4)) == [0, 1, 2]
    decode(5)
    assert device.of(5)[1] >= 0
