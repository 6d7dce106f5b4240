"""Segment records as a part of `fused`, and rows that rank single tokens by their codes.

forget, list   once per step    pages that start anew lose their record; records of every row
rank           once per layer   two launches for each kind of records that has codes
build          between steps    records of segments that are whole by now, in all layers at once

Bounds of segments are records as well; rows that look at them are those of `level_ops`.
"""

from collections.abc import Mapping
from typing import Any

import torch

import triton
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.summaries import BoundSummary, CodeSummary
from sgl_sparsekv.types import Reduction, StepShape

from .code_ops import CodePlan, run_codes
from .index import index_segments
from .records import (
    LIST_BLOCK,
    RESERVE_BLOCK,
    RecordBuffers,
    forget_records_kernel,
    list_records_kernel,
    reserve_records_kernel,
)
from .segment_bounds import bound_segments
from .spec import FORMULAS

FORGET_SLOTS = 256
Arrays = Mapping[str, torch.Tensor]
"""Arrays of records by the names of `SegmentSummary.shapes`."""


class CodedRows:
    """Records of a server's steps, and the rows that read them.

    Args:
        shape: with records.
        held: their buffers.
    """

    def __init__(self, shape: StepShape, held: RecordBuffers) -> None:
        self.shape = shape
        self.held = held
        self._kinds = {kind.summary.name: i for i, kind in enumerate(shape.records)}

    def forget(self, slots: torch.Tensor) -> None:
        """Records of segments that end with a page that `slots` int64 `[n]` are written in."""
        held, blocks = self.held, triton.cdiv(slots.numel(), FORGET_SLOTS)
        forget_records_kernel[(blocks, len(self._kinds))](
            slots, held.of_page, held.page_of, slots.numel(), held.of_page.shape[1],
            held.page_of.shape[1], PAGE=self.shape.page_size, BLOCK=FORGET_SLOTS,
        )  # fmt: skip

    def begin(
        self, request_rows: torch.Tensor, lengths: torch.Tensor, req_to_token: torch.Tensor
    ) -> None:
        """See `FusedDecode.begin`: the records of every row's whole segments."""
        held = self.held
        list_records_kernel[(request_rows.numel(), len(self._kinds))](
            request_rows, lengths, req_to_token, held.of_page, held.sizes, held.table,
            held.of_page.shape[1], held.table.shape[2], held.table.stride(0),
            req_to_token.stride(0), PAGE=self.shape.page_size, BLOCK=LIST_BLOCK,
        )  # fmt: skip

    def build(
        self,
        name: str,
        jobs: torch.Tensor,
        req_to_token: torch.Tensor,
        keys: torch.Tensor,
        key_pointers: torch.Tensor,
        arrays: Arrays,
        skip: int,
    ) -> None:
        """See `FusedDecode.build`."""
        held, kind = self.held, self._kinds[name]
        summary, capacity = self.shape.records[kind].summary, self.shape.records[kind].capacity
        reserve_records_kernel[(1,)](
            jobs, req_to_token, held.of_page, held.page_of, held.next, held.told, len(jobs), kind,
            summary.segment_size, capacity, held.of_page.shape[1], held.page_of.shape[1],
            req_to_token.stride(0), PAGE=self.shape.page_size, BLOCK=RESERVE_BLOCK,
        )  # fmt: skip
        source = (keys, key_pointers, req_to_token, jobs)
        if isinstance(summary, BoundSummary):
            size, unit = summary.segment_size, self.shape.unit_size
            bound_segments(size, unit, *source, arrays["planes"])
            return
        assert isinstance(summary, CodeSummary)
        index_segments(summary, *source, arrays["codes"], arrays["codebooks"], skip)

    def rank(
        self,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        buffers: Any,
        scale: float,
        records: Mapping[str, Arrays],
    ) -> None:
        """Scores of the rows that rank by codes, into `buffers.ranks`.

        Args:
            layer, q, keys, scale: as of `FusedDecode.decode`.
            buffers: of the steps.
            records: arrays of the layer by name of summary.
        """
        mean, plan = self.shape.reduction is Reduction.MEAN_SOFTMAX, buffers.plan
        for name, kind in self._kinds.items():
            if not isinstance(self.shape.records[kind].summary, CodeSummary):
                continue
            arrays, table = records[name], self.held.table[kind]
            index = SegmentIndex(arrays["codes"], arrays["codebooks"], table)
            cover = buffers.cover
            asked = () if cover is None else (cover.goals, cover.known)
            rows = CodePlan(plan[0], plan[1], plan[2], plan[6], FORMULAS[name], *asked)
            for ranks in (None, buffers.ranks):
                run_codes(
                    q, keys, buffers.table, index, rows, buffers.parts, ranks, scale, layer,
                    self.shape.unit_size, mean,
                )  # fmt: skip
