"""Segment records: what is stored of an aligned run of pages, keyed by the page it ends with.

A page determines every page before it, so the last page of a segment determines the segment; the
first does not, as another branch may go on from it. A record therefore needs no list of pages and
no owner: whoever reaches the page, by whatever branch of the tree, reaches the record.

Memory is bounded. Where no record is free, the one that was read longest ago gives way, unless the
running step reads it; where all are read, the segment stays without one and its tokens are scored
by their keys. A record that gave way is built again when its segment is next read.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from ..geometry import Geometry, ceil_div
from ..ops import Ops
from ..segment_records import SegmentIndex
from ..summaries import BoundSummary, CodeSummary, ResidualSummary, SegmentSummary
from .layout import KeyLayout

IntArray = npt.NDArray[np.int64]
Cache = tuple[torch.Tensor, torch.Tensor]
"""K `[slots, H, D]` and V `[slots, H, Dv]` of a layer."""


def record_capacity(num_slots: int, segment_size: int) -> int:
    """Records of a pool: one for every segment that fits, and a quarter more for branches."""
    return ceil_div(5 * num_slots, 4 * segment_size)


def bytes_per_record(summary: SegmentSummary, layout: KeyLayout) -> int:
    """Bytes of one record over all layers."""
    arrays = summary.shapes(layout.head_dim, layout.v_head_dim).values()
    head: int = sum(math.prod(shape) * (dtype or layout.dtype).itemsize for shape, dtype in arrays)
    return layout.num_layers * layout.num_kv_heads * head


class SegmentRecords:
    """The records of one segment summary, and which page each belongs to.

    The keys live on the host: a step is planned there.

    Attributes:
        summary: what a record holds.
        capacity: records there is room for.
        stacked: by the names of `SegmentSummary.shapes`, `[layers, capacity, H, ...]`.
        arrays: the same per layer.
        built: records sealed since the start.
        evicted: records that gave way to another since the start.
        refused: segments that found no room since the start, counted in every step.
    """

    def __init__(
        self,
        summary: SegmentSummary,
        layout: KeyLayout,
        geometry: Geometry,
        num_slots: int,
        device: torch.device | str,
    ) -> None:
        geometry.require_whole_pages(summary.segment_size)
        self.summary = summary
        self.layout = layout
        self.capacity = record_capacity(num_slots, summary.segment_size)
        rows = (layout.num_layers, self.capacity, layout.num_kv_heads)
        self.stacked = {
            name: torch.zeros(*rows, *shape, dtype=dtype or layout.dtype, device=device)
            for name, (shape, dtype) in summary.shapes(layout.head_dim, layout.v_head_dim).items()
        }
        self.arrays = [
            {name: array[layer] for name, array in self.stacked.items()}
            for layer in range(layout.num_layers)
        ]
        self.built = self.evicted = self.refused = 0
        self._step = 0
        self._of_page = np.full(ceil_div(num_slots, geometry.page_size), -1, dtype=np.int64)
        self._page = np.full(self.capacity, -1, dtype=np.int64)
        self._read = np.zeros(self.capacity, dtype=np.int64)
        self._pending: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.capacity * bytes_per_record(self.summary, self.layout)

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return next(iter(self.arrays[0].values())).device

    @property
    def held(self) -> dict[int, int]:
        """Record of every page that has one."""
        pages = np.flatnonzero(self._of_page >= 0)
        return dict(zip(pages.tolist(), self._of_page[pages].tolist(), strict=True))

    def begin_step(self) -> None:
        """A step begins; what a step that broke off was building is forgotten."""
        self._step += 1
        self._pending.clear()

    def read(self, pages: IntArray) -> IntArray:
        """Records of segments that end with `pages` (any shape), -1 for none; kept in this step."""
        records = self._of_page[pages]
        self._read[records[records >= 0]] = self._step
        return records

    def reserve(self, pages: IntArray) -> IntArray:
        """Make room for segments that end with `pages` `[n]`, which have no record.

        Returns:
            Records to be written before `seal`, -1 where there is no room.
        """
        taken = np.fromiter(self._pending.values(), dtype=np.int64)
        free = np.setdiff1d(np.flatnonzero(self._page < 0), taken)
        missing = len(pages) - len(free)
        if missing > 0:
            idle = np.flatnonzero((self._page >= 0) & (self._read < self._step))
            oldest = idle[np.argsort(self._read[idle], kind="stable")][:missing]
            self._forget(oldest)
            self.evicted += len(oldest)
            free = np.concatenate((free, oldest))
        records = np.full(len(pages), -1, dtype=np.int64)
        found = min(len(pages), len(free))
        records[:found] = free[:found]
        self.refused += len(pages) - found
        self._pending.update(zip(pages[:found].tolist(), free[:found].tolist(), strict=True))
        return records

    def seal(self) -> None:
        """The reserved records are written in every layer."""
        for page, record in self._pending.items():
            self._of_page[page], self._page[record] = record, page
            self._read[record] = self._step
        self.built += len(self._pending)
        self._pending.clear()

    def drop(self, pages: torch.Tensor) -> None:
        """Forget the records of pages `[n]` that start anew."""
        records = self._of_page[pages.cpu().numpy()]
        self._forget(records[records >= 0])

    def _forget(self, records: IntArray) -> None:
        self._of_page[self._page[records]] = -1
        self._page[records] = -1


def write_records(
    ops: Ops,
    summary: SegmentSummary,
    cache: Cache,
    slots: torch.Tensor,
    skips: torch.Tensor,
    into: dict[str, torch.Tensor],
    records: torch.Tensor,
) -> None:
    """Index whole segments.

    Args:
        ops: the device.
        summary: what to compute.
        cache: K `[slots, H, D]` and V `[slots, H, Dv]` of the pool.
        slots: int64 `[n, S]`, slots of each segment's tokens, in order.
        skips: int64 `[n]`, first tokens of each segment not to learn from.
        into: arrays of the layer, written at `records`.
        records: int64 `[n]`.
    """
    keys, _ = cache
    if isinstance(summary, BoundSummary):
        into["planes"][records] = summary.page.summarise(keys[slots])
        return
    if isinstance(summary, ResidualSummary):
        ops.index_residuals(summary, cache, slots, skips, into, records)
        return
    assert isinstance(summary, CodeSummary)
    index = SegmentIndex(into["codes"], into["codebooks"], records[None].int())
    ops.index_segments(summary, keys, slots, skips, index, records)
