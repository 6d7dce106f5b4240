"""Page metadata: fields by layer and physical unit, the sealed stamps, and segment records."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..geometry import Geometry
from ..summaries import PageSummary, SegmentSummary
from .layout import KeyLayout
from .records import SegmentRecords


def bytes_per_unit(layout: KeyLayout, summaries: Sequence[PageSummary], unit_size: int) -> int:
    """Bytes of fields that one physical unit takes over all layers, its stamp included."""
    size = sum(
        s.nbytes(layout.head_dim, layout.dtype) * (unit_size // (s.tokens or unit_size))
        for s in summaries
    )
    return layout.num_layers * layout.num_kv_heads * size + 1


BYTES_PER_SLOT = 4
"""Of what is kept by slot."""


class PageMetadata:
    """Tensors keyed by physical unit; knows nothing of scoring, requests or SGLang.

    A unit is *sealed* when its fields are final: it is full, its tokens are committed and every
    layer was summarised. Only sealed units may be scored. The stamp is all that decides validity;
    fields of an unsealed unit are garbage.

    Attributes:
        sealed: bool `[units]`, the stamps.
        records: by name of the segment summary.
        last_layer: behind which units are sealed, counted from this rank's first; an earlier one
            than the pool's last where the last layers of a model have no attention.

    Args:
        room: entered where fields and records are allocated. Its memory may be given back and come
            again as garbage while all pages are free: stamps and names of records stay outside, and
            whatever they say of a page is forgotten when it starts anew.
    """

    def __init__(
        self,
        geometry: Geometry,
        summaries: Sequence[PageSummary],
        layout: KeyLayout,
        num_slots: int,
        device: torch.device | str,
        segments: Sequence[SegmentSummary] = (),
        room: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.geometry = geometry
        self.summaries = tuple(summaries)
        self.layout = layout
        self.num_units = geometry.pool_units(num_slots)
        self.last_layer = layout.num_layers - 1
        self.sealed = torch.zeros(self.num_units, dtype=torch.bool, device=device)
        with room or nullcontext():
            self._fields = {
                summary.name: [self._field(summary, device) for _ in range(layout.num_layers)]
                for summary in self.summaries
            }
            self.records = {
                summary.name: SegmentRecords(summary, layout, geometry, num_slots, device)
                for summary in segments
            }
            self.budgets = torch.zeros(num_slots, dtype=torch.int32, device=device)
            """By slot of the radix tree: tokens that the step read which made its keys; 0: all."""
        self.poison = False
        """Fill the fields of units that lose their stamp with `PageSummary.poison`, so that a stale
        read shows."""

    def _field(self, summary: PageSummary, device: torch.device | str) -> torch.Tensor:
        parts = self.geometry.unit_size // (summary.tokens or self.geometry.unit_size)
        extents = (self.num_units * parts, self.layout.num_kv_heads)
        shape = (*extents, *summary.shape(self.layout.head_dim))
        return torch.zeros(shape, dtype=summary.dtype or self.layout.dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        unit = bytes_per_unit(self.layout, self.summaries, self.geometry.unit_size)
        records = sum(r.nbytes for r in self.records.values())
        return self.num_units * unit + records + len(self.budgets) * BYTES_PER_SLOT

    def fields(self, summary: str, layer: int) -> torch.Tensor:
        """Field `[units, H, planes, W]` of a summary in a layer, counted from this rank's first."""
        return self._fields[summary][layer]

    def start_pages(self, pages: torch.Tensor) -> None:
        """Forget the past life of pages `[n]` that were handed out or start anew."""
        self._forget(self.geometry.units_of_pages(pages), pages)

    def overwrite(self, slots: torch.Tensor) -> None:
        """Slots `[n]` are written: what their units and the segments that end there said is over.

        A page starts anew with its first slot. A session that goes on, or a step that is taken
        back, writes into the middle of a page, behind slots that stay.
        """
        self.start_pages(self.geometry.page_starts(slots))
        self._forget(self.geometry.unit_of(slots), self.geometry.page_of(slots))

    def _forget(self, units: torch.Tensor, pages: torch.Tensor) -> None:
        self.sealed[units] = False
        for records in self.records.values():
            records.drop(pages)
        if self.poison:
            for summary in self.summaries:
                finer = self.geometry.finer(units, summary.tokens)
                for field in self._fields[summary.name]:
                    field[finer] = summary.poison

    def seal(self, units: torch.Tensor) -> None:
        """Stamp units `[n]` whose fields are written in every layer."""
        self.sealed[units] = True

    def unsealed(self, units: torch.Tensor) -> torch.Tensor:
        """Those of units `[n]` (any order, repeats allowed) without a stamp, ascending, once."""
        return torch.unique(units[~self.sealed[units]])
