"""Fields of page metadata, stored by layer and physical unit, and the sealed stamps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..geometry import Geometry
from ..types import PageSummary


@dataclass(frozen=True)
class KeyLayout:
    """What one layer's K looks like: `[slots, num_kv_heads, head_dim]` of `dtype`."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


def bytes_per_unit(layout: KeyLayout, summaries: Sequence[PageSummary]) -> int:
    """Bytes of metadata that one physical unit takes over all layers, its stamp included."""
    planes = sum(len(summary.planes) for summary in summaries)
    itemsize: int = layout.dtype.itemsize
    row = layout.num_kv_heads * planes * layout.head_dim * itemsize
    return layout.num_layers * row + 1


class PageMetadata:
    """Tensors keyed by physical unit; knows nothing of scoring, requests or SGLang.

    A unit is *sealed* when its fields are final: it is full, its tokens are committed and every
    layer was summarised. Only sealed units may be scored. The stamp is all that decides validity;
    fields of an unsealed unit are garbage.
    """

    def __init__(
        self,
        geometry: Geometry,
        summaries: Sequence[PageSummary],
        layout: KeyLayout,
        num_slots: int,
        device: torch.device | str,
    ) -> None:
        self.geometry = geometry
        self.summaries = tuple(summaries)
        self.layout = layout
        self.num_units = geometry.pool_units(num_slots)
        self.sealed = torch.zeros(self.num_units, dtype=torch.bool, device=device)
        shape = (self.num_units, layout.num_kv_heads)
        self._fields = {
            summary.name: [
                torch.zeros(
                    (*shape, len(summary.planes), layout.head_dim),
                    dtype=layout.dtype,
                    device=device,
                )
                for _ in range(layout.num_layers)
            ]
            for summary in self.summaries
        }
        self.poison = False
        """Fill the fields of units that lose their stamp with NaN, so that a stale read shows."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.num_units * bytes_per_unit(self.layout, self.summaries)

    def fields(self, summary: str, layer: int) -> torch.Tensor:
        """Field `[units, H, planes, D]` of a summary in a layer, counted from this rank's first."""
        return self._fields[summary][layer]

    def start_pages(self, pages: torch.Tensor) -> None:
        """Forget the past life of pages `[n]` that were handed out or start anew."""
        units = self.geometry.units_of_pages(pages)
        self.sealed[units] = False
        if self.poison:
            for layers in self._fields.values():
                for field in layers:
                    field[units] = torch.nan

    def seal(self, units: torch.Tensor) -> None:
        """Stamp units `[n]` whose fields are written in every layer."""
        self.sealed[units] = True

    def unsealed(self, units: torch.Tensor) -> torch.Tensor:
        """Those of units `[n]` (any order, repeats allowed) without a stamp, ascending, once."""
        return torch.unique(units[~self.sealed[units]])
