"""The ops of `sgl_sparsekv.segment_ops.SegmentOps` on the CPU kernels."""

from array import array
from collections.abc import Mapping

import torch

from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.summaries import CodeSummary, ResidualSummary
from sgl_sparsekv.types import Candidates, Reduction, Rest, ScoreInputs, Selection, per_head

from .arguments import REDUCTIONS, address, attend_args, code_args, dtype_of, strides_of
from .library import DTYPES, Library

GAINS = (ResidualSummary.BY_CODE, ResidualSummary.BY_CENTROID)
"""`Gains` of args.h."""


class CpuSegmentOps:
    """Kernels over records of segments: codes, clusters, and what answers for what is not read."""

    _kernels: Library

    def index_segments(
        self,
        summary: CodeSummary,
        keys: torch.Tensor,
        slots: torch.Tensor,
        skips: torch.Tensor,
        index: SegmentIndex,
        records: torch.Tensor,
    ) -> None:
        """See `Ops.index_segments`."""
        codes, books = index.codes, index.codebooks
        assert codes.is_contiguous() and books.is_contiguous() and books.dtype is keys.dtype
        slots, skips, records = slots.contiguous(), skips.contiguous(), records.contiguous()
        _, heads, dim = keys.shape
        self._kernels.index_segments(
            *(keys.data_ptr(), slots.data_ptr(), skips.data_ptr(), records.data_ptr()),
            *(codes.data_ptr(), books.data_ptr(), len(slots), heads, dim),
            *(summary.segment_size, summary.subspaces, summary.codes, summary.cosine),
            *(summary.iterations, summary.capacity or 0),
            *(DTYPES[keys.dtype], torch.get_num_threads(), *strides_of(keys=keys)[:2]),
        )

    def index_residuals(
        self,
        summary: ResidualSummary,
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        skips: torch.Tensor,
        into: Mapping[str, torch.Tensor],
        records: torch.Tensor,
    ) -> None:
        """See `Ops.index_residuals`."""
        summary.write(self.index_segments, cache, slots, skips, into, records)

    def score_codes(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        index: SegmentIndex | ResidualIndex,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        known: torch.Tensor | None = None,
        reach: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Ops.score_codes`."""
        dtype_of(q, keys)
        width, spans = candidates.unit_table.shape[1], candidates.contiguous()
        out = torch.empty(*q.shape[:2], width)
        clustered = isinstance(index, ResidualIndex)
        if reach is not None:
            reach = reach.contiguous()
        kernel = self._kernels.score_clusters if clustered else self._kernels.score_codes
        kernel(
            *code_args(q, index, spans, scale, width),
            *(keys.data_ptr(), reach.data_ptr() if clustered and reach is not None else 0),
            *(address(known, reduction), out.data_ptr(), *strides_of(keys=keys)[:2]),
            REDUCTIONS[reduction],
        )
        return out

    def choose(self, inputs: ScoreInputs, reach: int) -> tuple[Selection, torch.Tensor]:
        """See `Ops.choose`."""
        q, keys, index = inputs.q, inputs.keys, inputs.index
        assert isinstance(index, ResidualIndex) and inputs.known is None
        dtype_of(q, keys)
        rows, heads, group, _ = q.shape
        num_units, counts = inputs.num_units.contiguous(), inputs.counts.contiguous()
        kept = counts.tolist()  # a tensor op on so few takes longer
        within, widest = array("i", [reach * count for count in kept]), max(kept)
        logical = torch.empty(rows, heads, widest, dtype=torch.int32)
        physical = torch.empty(rows, heads, widest, dtype=torch.int32)
        weights = torch.empty(rows, heads, group, index.table.shape[1] * index.entries)
        spans = inputs.candidates.contiguous()
        self._kernels.choose(
            *code_args(q, index, spans, inputs.scale, spans.unit_table.shape[1]),
            *(keys.data_ptr(), within.buffer_info()[0], 0, 0, *strides_of(keys=keys)[:2]),
            *(REDUCTIONS[inputs.reduction], num_units.data_ptr(), counts.data_ptr()),
            *(logical.data_ptr(), physical.data_ptr(), weights.data_ptr(), widest, *GAINS),
        )
        return Selection(logical, physical, per_head(counts, heads)), weights

    def weigh(
        self,
        q: torch.Tensor,
        index: ResidualIndex,
        candidates: Candidates,
        selection: Selection,
        scale: float,
        reduction: Reduction,
        reach: torch.Tensor,
        unit_size: int,
    ) -> torch.Tensor:
        """See `Ops.weigh`."""
        spans, logical = candidates.contiguous(), selection.logical
        assert logical.is_contiguous()
        rows, heads, group, _ = q.shape
        counts, reach = per_head(selection.counts, heads), reach.contiguous()
        weights = torch.empty(rows, heads, group, index.table.shape[1] * index.entries)
        width = index.table.shape[1] * index.segment_size  # in tokens, as is the span
        self._kernels.weigh(
            *code_args(q, index, spans, scale, width),
            *(0, reach.data_ptr(), 0, 0, 0, 0, REDUCTIONS[reduction]),
            *(logical.data_ptr(), counts.data_ptr(), weights.data_ptr()),
            *(logical.shape[-1], unit_size, *counts.stride(), *GAINS),
        )
        return weights

    def estimate(
        self, weights: torch.Tensor, index: ResidualIndex, out: torch.Tensor, lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.estimate`."""
        values, scales, table = index.values, index.scales, index.table
        held = (weights, values, scales, out, lse)
        assert all(one.is_contiguous() for one in held)
        rows, heads, group, width = out.shape
        joined, joined_lse = torch.empty_like(out), torch.empty_like(lse)
        self._kernels.estimate(
            *(weights.data_ptr(), values.data_ptr(), scales.data_ptr(), table.data_ptr()),
            *(out.data_ptr(), lse.data_ptr(), joined.data_ptr(), joined_lse.data_ptr()),
            *(rows, heads, group, width, table.shape[1], index.codebooks.shape[2]),
            *(DTYPES[out.dtype], torch.get_num_threads(), strides_of(table=table)[0]),
        )
        return joined, joined_lse

    def attend_all(
        self,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        selection: Selection,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
        rest: Rest,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.attend_all`."""
        tails, (weights, index) = tail_lengths.contiguous(), (rest.weights, rest.index)
        held = (weights, index.values, index.scales)
        assert all(one.is_contiguous() for one in held)
        out, lse = q.new_empty(*q.shape[:3], cache[1].shape[-1]), torch.empty(q.shape[:3])
        listed = (selection.physical, selection.counts, tails, out, lse)
        self._kernels.attend_all(
            *attend_args(q, cache, listed, scale, unit_size),
            *(*(one.data_ptr() for one in held), index.table.data_ptr(), index.table.shape[1]),
            *(index.codebooks.shape[2], strides_of(table=index.table)[0]),
        )
        return out, lse
