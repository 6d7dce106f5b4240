"""Which units a step summarises, and when they are sealed."""

from typing import Any

import torch

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata import PageMetadata, StepSeal
from sgl_sparsekv.page_metadata.layout import KeyLayout
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.shadowkv import LANDMARK

KEYS = torch.randn(8 * 32, 1, 4)


class Device:
    """Notes what it is asked to summarise."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def summarise(self, summary: Any, keys: Any, fields: Any, units: torch.Tensor) -> None:
        self.asked.append((summary.name, keys, fields, units.tolist()))


def seal_of() -> tuple[StepSeal, PageMetadata, Device]:
    """8 pages of 2 units; of 2 layers."""
    layout = KeyLayout(2, 1, 4, torch.float32)
    summaries = (Quest.summary, LANDMARK)
    metadata = PageMetadata(Geometry(32, 16), summaries, layout, 8 * 32, "cpu")
    device: Any = Device()
    return StepSeal(metadata, device), metadata, device


NONE = torch.tensor([], dtype=torch.int64)


def test_units_that_fill_and_units_that_are_needed_are_pending_once_in_order() -> None:
    """Of slots 32 to 95 four units fill; 9 was filled unseen, 10 is sealed."""
    seal, metadata, _ = seal_of()
    assert seal.pending.numel() == 0 and seal.pending.dtype == torch.int64
    metadata.seal(torch.tensor([10]))
    seal.begin_step(torch.arange(32, 96), torch.tensor([10, 9, 4, 9]))
    assert seal.pending.tolist() == [2, 3, 4, 5, 9]
    seal.begin_step(torch.tensor([96, 110]), NONE)
    assert seal.pending.tolist() == []
    seal.begin_step(torch.arange(104, 112), NONE)
    assert seal.pending.tolist() == [6]


def test_page_0_takes_padding_and_is_never_summarised() -> None:
    seal, _, _ = seal_of()
    seal.begin_step(torch.tensor([*range(32), 31, 47]), NONE)
    assert seal.pending.tolist() == [2]


def test_the_first_slot_behind_page_0_starts_a_page() -> None:
    seal, metadata, _ = seal_of()
    metadata.seal(torch.arange(16))
    seal.begin_step(torch.tensor([0, 31, 32]), NONE)
    assert (~metadata.sealed).nonzero().flatten().tolist() == [2, 3]


def test_each_layer_gets_its_fields_and_the_last_one_the_stamp() -> None:
    seal, metadata, device = seal_of()
    seal.begin_step(torch.arange(32, 48), NONE)
    seal.summarise(0, KEYS)
    assert not metadata.sealed.any()
    seal.summarise(1, KEYS)
    assert metadata.sealed.nonzero().flatten().tolist() == [2]
    told = [(name, units) for name, _, _, units in device.asked]
    assert told == [("min_max", [2]), ("landmark", [4, 5])] * 2, "chunks are smaller units"
    for i, (name, keys, fields, _) in enumerate(device.asked):
        assert keys is KEYS and fields is metadata.fields(name, i // 2)


def test_units_are_sealed_behind_the_last_layer_that_has_attention() -> None:
    seal, metadata, _ = seal_of()
    metadata.last_layer = 0
    seal.begin_step(torch.arange(32, 48), NONE)
    seal.summarise(0, KEYS)
    assert metadata.sealed.nonzero().flatten().tolist() == [2]


def test_a_step_that_fills_nothing_asks_nothing() -> None:
    seal, metadata, device = seal_of()
    seal.begin_step(torch.tensor([32]), NONE)
    seal.summarise(1, KEYS)
    assert device.asked == [] and not metadata.sealed.any()


def test_what_was_written_or_handed_out_is_forgotten_first() -> None:
    """A page that is handed out is forgotten with the next step, once."""
    seal, metadata, _ = seal_of()
    metadata.seal(torch.arange(16))
    seal.hand_out(torch.arange(64, 96))
    seal.hand_out(torch.arange(128, 160))
    assert bool(metadata.sealed.all())
    seal.begin_step(torch.tensor([200]), NONE)
    assert (~metadata.sealed).nonzero().flatten().tolist() == [4, 5, 8, 9, 12]
    metadata.seal(torch.arange(16))
    seal.begin_step(NONE, NONE)
    assert bool(metadata.sealed.all())
