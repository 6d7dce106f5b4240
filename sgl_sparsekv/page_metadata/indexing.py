"""The life of a segment within a forward step: be found, be indexed, be sealed.

Beside `lifecycle`, which forgets the records of pages that start anew: `begin_step` here comes
behind the one there, `summarise` follows K in each layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import Geometry
from ..ops import Ops
from ..segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from ..summaries import BoundSummary, ResidualSummary
from .check import Mismatch, find_record_mismatches
from .records import Cache, SegmentRecords, write_records

SINKS = 16
"""First tokens of a sequence, which no record learns from: they draw attention whatever they say,
and are always read."""


@dataclass(frozen=True)
class RowSegments:
    """What one row of a step means to the segments of its sequence.

    Attributes:
        slots: int `[L]`, slot of each position, those written in this step included.
        written: tokens before this step.
        read: its method reads segment records, so those that are missing are built.
    """

    slots: torch.Tensor
    written: int
    read: bool


class StepIndex:
    """Carries the segments that the running step indexes through its layers.

    A segment is indexed when its last token is written, by prefill or decode, and when a row reads
    it and it has no record: it was loaded unseen, or its record gave way to another.
    """

    def __init__(
        self, records: SegmentRecords, geometry: Geometry, ops: Ops, last_layer: int
    ) -> None:
        self.records = records
        self.geometry = geometry
        self.ops = ops
        self._last_layer = last_layer
        self._slots = torch.empty(0, 0, dtype=torch.int64)
        self._skips = torch.empty(0, dtype=torch.int64)
        self._targets = torch.empty(0, dtype=torch.int64)
        self._rows: Sequence[RowSegments] = ()
        self._table = np.empty((0, 0), dtype=np.int64)

    def begin_step(self, rows: Sequence[RowSegments]) -> torch.Tensor:
        """Find the records of the rows' whole segments and what must be built.

        Behind `StepSeal.begin_step`, which forgets the pages that start anew.

        Returns:
            int32 `[rows, segments]`, -1 where a segment has no record or does not exist.
        """
        records, size = self.records, self.records.summary.segment_size
        records.begin_step()
        widest = max((len(row.slots) // size for row in rows), default=0)
        pages = np.full((len(rows), widest), -1, dtype=np.int64)
        build: dict[int, tuple[int, int]] = {}
        for i, row in enumerate(rows):
            ends = self.geometry.segment_pages(row.slots, size).cpu().numpy()
            pages[i, : len(ends)] = ends
            found = records.read(ends)
            for nth in np.flatnonzero(found < 0).tolist():
                if row.read or (nth + 1) * size > row.written:
                    build.setdefault(int(ends[nth]), (i, nth))
        wanted = np.fromiter(build, dtype=np.int64)
        reserved = dict(zip(build, records.reserve(wanted).tolist(), strict=True))
        built = [(*build[page], record) for page, record in reserved.items() if record >= 0]
        self._note(rows, built)
        table = np.where(pages >= 0, records.read(pages), -1)
        for page, record in reserved.items():
            table[pages == page] = record
        self._rows, self._table = rows, table
        return torch.from_numpy(table.astype(np.int32)).to(self._slots.device)

    def _note(self, rows: Sequence[RowSegments], built: list[tuple[int, int, int]]) -> None:
        size = self.records.summary.segment_size
        spans = [rows[i].slots[nth * size : (nth + 1) * size] for i, nth, _ in built]
        self._slots = torch.stack(spans).long() if spans else torch.empty(0, size).long()
        self._slots = self._slots.to(self.records.device)
        self._skips = torch.tensor([SINKS * (nth == 0) for _, nth, _ in built], dtype=torch.int64)
        self._targets = torch.tensor([record for *_, record in built], dtype=torch.int64)

    def summarise(self, layer: int, cache: Cache) -> None:
        """Write this layer's records of the step's segments; seals them behind the last layer."""
        if not self._targets.numel():
            return
        into = self.records.arrays[layer]
        write_records(
            self.ops, self.records.summary, cache, self._slots, self._skips, into, self._targets
        )
        if layer == self._last_layer:
            self.records.seal()

    def mismatches(self, layer: int, cache: Cache, nth: int) -> tuple[int, list[Mismatch]]:
        """Index one of the step's segments again, the `nth` of those that have a record.

        Returns:
            Segments that were compared, and what differs from its record.
        """
        there = np.argwhere(self._table >= 0)
        if not len(there):
            return 0, []
        row, segment = there[nth % len(there)].tolist()
        size = self.records.summary.segment_size
        slots = self._rows[row].slots[segment * size : (segment + 1) * size].long()
        skips = torch.tensor([SINKS * (segment == 0)])
        held = torch.tensor([int(self._table[row, segment])])
        return 1, find_record_mismatches(
            self.records, self.ops, layer, cache, slots[None], skips, held
        )

    def view(self, layer: int, table: torch.Tensor) -> SegmentIndex | ResidualIndex | SegmentBounds:
        """The records of a layer as rows `[rows, segments]` of `table` read them."""
        arrays = self.records.arrays[layer]
        if isinstance(self.records.summary, BoundSummary):
            return SegmentBounds(arrays["planes"], table, self.records.summary.segment_size)
        if isinstance(self.records.summary, ResidualSummary):
            return ResidualIndex(**arrays, table=table)
        return SegmentIndex(**arrays, table=table)
