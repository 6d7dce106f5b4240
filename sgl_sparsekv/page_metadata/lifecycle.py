"""The life of a unit within a forward step: start anew, fill, be summarised, be sealed.

    begin_step   pages that start anew, and units that are written, lose their stamps and records;
                 the step's units to summarise are known
    summarise    in each layer, once K is written: the fields of those units; behind the last
                 layer they are sealed

Everything runs on the forward stream in batch order. That is what makes late writes of a finished
request harmless: its pages are handed out again, start anew, and lose their stamps after them.
"""

import torch

from ..ops import Ops
from .pool import PageMetadata


class StepSeal:
    """Carries the units of the running step from `begin_step` through its layers."""

    def __init__(self, metadata: PageMetadata, ops: Ops) -> None:
        self.metadata = metadata
        self.ops = ops
        self.pending = torch.empty(0, dtype=torch.int64)
        self._handed_out: list[torch.Tensor] = []

    def hand_out(self, slots: torch.Tensor) -> None:
        """Remember whole pages of `slots` that the allocator gave to a writer we may not see."""
        self._handed_out.append(slots)

    def begin_step(self, new_slots: torch.Tensor, needed_units: torch.Tensor) -> None:
        """Take note of what this step writes and what it will score.

        Args:
            new_slots: int64 `[n]`, slots that receive K in this step.
            needed_units: int64 `[m]`, full physical units that decode rows may score; those that
                were filled unseen (load-back, transfer, a foreign prefill) are summarised now.
        """
        geometry = self.metadata.geometry
        for slots in self._handed_out:
            self.metadata.start_pages(geometry.page_starts(slots))
        self._handed_out.clear()
        live = new_slots[new_slots >= geometry.page_size]  # page 0 absorbs padding
        self.metadata.overwrite(live)
        completed = geometry.completed_units(live)
        if needed_units.numel():
            completed = torch.cat((completed, self.metadata.unsealed(needed_units)))
        self.pending = torch.unique(completed)

    def summarise(self, layer: int, keys: torch.Tensor) -> None:
        """Write this layer's fields of the step's units; seals them behind the last layer.

        Args:
            layer: counted from this rank's first layer; layers come in order.
            keys: `[slots, H, D]`, K of the layer, this step's rows included.
        """
        if not self.pending.numel():
            return
        for summary in self.metadata.summaries:
            units = self.metadata.geometry.finer(self.pending, summary.tokens)
            self.ops.summarise(summary, keys, self.metadata.fields(summary.name, layer), units)
        if layer == self.metadata.last_layer:
            self.metadata.seal(self.pending)
