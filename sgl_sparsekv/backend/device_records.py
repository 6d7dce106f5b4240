"""Segment records of a device that serves whole steps: built between two of them.

The host knows no page: from lengths alone it says which segments are whole by now, and the device
finds out which of these have a record. What one step leaves over waits for the next; until then
tokens are ranked by their keys.
"""

from collections.abc import Iterable
from typing import Any

import torch

from ..fused_ops import FusedDecode
from ..ops import Ops
from ..page_metadata import PageMetadata, SegmentRecords
from ..page_metadata.check import Mismatch, find_record_mismatches
from ..page_metadata.indexing import SINKS
from .request_table import RequestEntry

MOST_BUILT = 64
"""Segments of each kind that are built between two steps, at most."""


class DeviceRecords:
    """Keeps the records of a server's methods up with what its requests have written.

    Args:
        step: what holds and builds them.
        metadata: of the pool.
        pool: SGLang's, of K and V.
        table: int32 `[requests, context]`, `req_to_token`.
    """

    def __init__(
        self, step: FusedDecode, metadata: PageMetadata, pool: Any, table: torch.Tensor
    ) -> None:
        self._step, self._pool, self._table = step, pool, table
        self.kinds: dict[str, SegmentRecords] = {
            kind.summary.name: metadata.records[kind.summary.name] for kind in step.shape.records
        }
        self._layers, self._geometry = metadata.layout.num_layers, metadata.geometry
        caches = [pool.get_kv_buffer(pool.start_layer + i) for i in range(self._layers)]
        self._pointers = tuple(
            torch.tensor([cache[i].data_ptr() for cache in caches]).to(table.device) for i in (0, 1)
        )
        held = step.buffers.records.told
        self._told = torch.zeros(held.shape, dtype=held.dtype, pin_memory=held.is_cuda)

    def of_layer(self, layer: int) -> dict[str, dict[str, torch.Tensor]]:
        """Arrays of a layer, counted from this rank's first, by kind."""
        return {name: records.arrays[layer] for name, records in self.kinds.items()}

    def build(self, rows: Iterable[tuple[int, RequestEntry, int]]) -> None:
        """Build what segments have become whole, or were never looked at.

        Args:
            rows: row of `req_to_token`, the request that owns it, and tokens written by now.
        """
        rows = list(rows)
        for name, records in self.kinds.items():
            jobs = self._jobs(name, records, rows)
            if jobs:
                told = torch.tensor(jobs, dtype=torch.int32)
                if self._table.is_cuda:
                    told = told.pin_memory().to(self._table.device, non_blocking=True)
                how = (self._all_layers(), self._pointers, records.stacked, SINKS)
                self._step.build(name, told, self._table, *how)
        self._count()

    def _all_layers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the first layer; what is loaded back into any of them is there by then."""
        first = self._pool.start_layer
        caches = [self._pool.get_kv_buffer(first + i) for i in range(self._layers)]
        keys, values = caches[0]
        return keys, values

    def _count(self) -> None:
        """Ask what was built, and say what was when it was last asked: nothing waits for it."""
        for kind, records in enumerate(self.kinds.values()):
            records.built, records.evicted = self._told[kind].tolist()
        self._told.copy_(self._step.buffers.records.told, non_blocking=True)

    @staticmethod
    def _jobs(
        name: str, records: SegmentRecords, rows: list[tuple[int, RequestEntry, int]]
    ) -> list[tuple[int, int, int]]:
        """Rows and numbers of segments, and room for their records."""
        jobs: list[tuple[int, int, int]] = []
        most = min(MOST_BUILT, records.capacity)
        for row, entry, written in rows:
            whole = written // records.summary.segment_size
            first = min(entry.indexed.get(name, 0), whole)
            last = min(whole, first + most - len(jobs))
            jobs += [(row, nth, -1) for nth in range(first, last)]
            entry.indexed[name] = last
        return jobs

    def mismatches(
        self, ops: Ops, row: int, length: int, number: int
    ) -> tuple[int, list[Mismatch]]:
        """Build one record of each kind that a row reads again, in one layer; waits for the device.

        Args:
            ops: the device.
            row: of `req_to_token`.
            length: tokens written.
            number: of the check; each looks at another segment and layer.

        Returns:
            how many were compared, and what differs.
        """
        compared, found = 0, list[Mismatch]()
        for kind, records in enumerate(self.kinds.values()):
            size, layer = records.summary.segment_size, number % self._layers
            whole = length // size
            if not whole:
                continue
            nth = number % whole
            slots = self._table[row, nth * size : (nth + 1) * size].long()
            page = int(self._geometry.page_of(slots[-1:]))
            record = int(self._step.buffers.records.of_page[kind, page])
            if record < 0:
                continue
            cache = self._pool.get_kv_buffer(self._pool.start_layer + layer)
            skips = torch.tensor([SINKS * (nth == 0)])
            held = torch.tensor([record])
            compared += 1
            found += find_record_mismatches(records, ops, layer, cache, slots[None], skips, held)
        return compared, found
