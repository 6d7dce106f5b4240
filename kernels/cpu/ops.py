"""The ops of `sgl_sparsekv.ops.Ops` on the CPU kernels."""

import ctypes
import math
import threading
from typing import NamedTuple

import torch

from sgl_sparsekv.errors import UnsupportedOnDevice
from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.summaries import CodeSummary, PageSummary, ResidualSummary
from sgl_sparsekv.types import (
    POOL_FLOOR,
    Candidates,
    Ranking,
    Reduction,
    ScoreInputs,
    Selection,
    per_head,
)

from .library import (
    DTYPES,
    AllotArgs,
    AttendArgs,
    ChooseArgs,
    CodeArgs,
    EstimateArgs,
    IndexArgs,
    SampleArgs,
    ScoreArgs,
    SelectArgs,
    SummariseArgs,
    WeighArgs,
    load_library,
)
from .prefill import merge, prefill

UPPER_BOUND, EXPECTED_MAXIMUM, EXACT, PRODUCT = range(4)
"""`Formula` of args.h."""
FORMULAS = {"min_max": UPPER_BOUND, "mean_std": EXPECTED_MAXIMUM, "landmark": PRODUCT}
PLANES = {"min_max": 0, "mean_std": 1, "landmark": 2, "misfit": 3}
"""`Planes` of args.h."""
REDUCTIONS = {Reduction.MAX_SOFTMAX: 0, Reduction.MEAN_SOFTMAX: 1, Reduction.MAX: 2}
"""`Reduction` of args.h."""
GAINS = (ResidualSummary.BY_CODE, ResidualSummary.BY_CENTROID)
"""`Gains` of args.h."""
SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))


class _Formula(NamedTuple):
    """A formula of args.h and how its data lies."""

    number: int
    strides: tuple[int, ...]
    unit_size: int
    spread: float


class Scratch(threading.local):
    """Float32 working memory of one thread, kept between calls: fresh pages cost a fault each."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0)

    def pointer(self, floats: int) -> int:
        """Address of at least `floats` float32 elements, valid until the next call."""
        if self.buffer.numel() < floats:
            self.buffer = torch.empty(floats + floats // 4)
        return self.buffer.data_ptr()


class CpuOps:
    """Fused kernels of one instruction set."""

    name = "cpu"
    has_segments = True

    def __init__(self, level: str | None = None) -> None:
        self._library = load_library(level)
        self._scratch = Scratch()

    def summaries(self) -> frozenset[str] | None:
        """See `Ops.summaries`."""
        return frozenset(PLANES)

    def summarise(
        self, summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor, units: torch.Tensor
    ) -> None:
        """See `Ops.summarise`."""
        if summary.name not in PLANES:
            raise UnsupportedOnDevice(summary.name, "summarise", self.name)
        _check_rows(keys=keys, fields=fields)
        units = units.contiguous()
        assert units.dtype is torch.int64 and fields.dtype is keys.dtype
        _, heads, dim = keys.shape
        args = SummariseArgs(
            *(keys.data_ptr(), fields.data_ptr(), units.data_ptr()),
            *(units.numel(), heads, dim, keys.shape[0] // fields.shape[0]),
            *(DTYPES[keys.dtype], torch.get_num_threads(), PLANES[summary.name]),
            *(*keys.stride()[:2], *fields.stride()[:3]),
        )
        self._library.summarise(ctypes.byref(args))

    def score(
        self,
        summary: PageSummary,
        q: torch.Tensor,
        fields: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Ops.score`."""
        if summary.name not in FORMULAS:
            raise UnsupportedOnDevice(summary.name, "score", self.name)
        number = FORMULAS[summary.name]
        spread = summary.reach * (SPREAD if number == EXPECTED_MAXIMUM else 1)
        formula = _Formula(number, fields.stride()[:3], 0, spread)
        return self._score(q, fields, candidates, scale, reduction, formula, known)

    def score_exact(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        unit_size: int,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Ops.score_exact`."""
        formula = _Formula(EXACT, (*keys.stride()[:2], 0), unit_size, 0)
        return self._score(q, keys, candidates, scale, reduction, formula, known)

    def _score(
        self,
        q: torch.Tensor,
        data: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        formula: "_Formula",
        known: torch.Tensor | None,
    ) -> torch.Tensor:
        table = candidates.unit_table
        _check_rows(q=q, data=data, unit_table=table)
        _check_dtype(q, data)
        begin, end = candidates.begin.contiguous(), candidates.end.contiguous()
        rows, heads, group, dim = q.shape
        out = torch.empty(rows, heads, table.shape[1])
        args = ScoreArgs(
            *(q.data_ptr(), data.data_ptr(), table.data_ptr(), begin.data_ptr(), end.data_ptr()),
            *(_pointer(known, reduction), out.data_ptr(), None),
            *(rows, heads, group, dim, table.shape[1], formula.unit_size),
            *(DTYPES[q.dtype], torch.get_num_threads(), formula.number),
            *(REDUCTIONS[reduction], *q.stride()[:3], *formula.strides, table.stride(0)),
            *(scale, formula.spread),
        )
        pointer = ctypes.byref(args)
        args.scratch = self._scratch.pointer(self._library.score_scratch(pointer))
        self._library.score(pointer)
        return out

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
        _check_rows(keys=keys)
        assert codes.is_contiguous() and books.is_contiguous() and books.dtype is keys.dtype
        slots, skips, records = slots.contiguous(), skips.contiguous(), records.contiguous()
        _, heads, dim = keys.shape
        args = IndexArgs(
            *(keys.data_ptr(), slots.data_ptr(), skips.data_ptr(), records.data_ptr()),
            *(codes.data_ptr(), books.data_ptr(), None, len(slots), heads, dim),
            *(summary.segment_size, summary.subspaces, summary.codes, summary.cosine),
            *(summary.iterations, summary.capacity or 0),
            *(DTYPES[keys.dtype], torch.get_num_threads(), *keys.stride()[:2]),
        )
        pointer = ctypes.byref(args)
        args.scratch = self._scratch.pointer(self._library.index_segments_scratch(pointer))
        self._library.index_segments(pointer)

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
        _check_rows(keys=keys)
        _check_dtype(q, keys)
        spans = candidates.contiguous()
        args = self._code_args(q, index, spans, scale)
        out = torch.empty(*q.shape[:2], spans.unit_table.shape[1])
        args.keys, args.out, args.reduction = keys.data_ptr(), out.data_ptr(), REDUCTIONS[reduction]
        args.known = _pointer(known, reduction)
        args.k_slot, args.k_head = keys.stride()[:2]
        pointer = ctypes.byref(args)
        if isinstance(index, SegmentIndex):
            args.scratch = self._scratch.pointer(self._library.score_codes_scratch(pointer))
            self._library.score_codes(pointer)
            return out
        if reach is not None:
            reach = reach.contiguous()
            args.reach = reach.data_ptr()
        args.scratch = self._scratch.pointer(self._library.score_clusters_scratch(pointer))
        self._library.score_clusters(pointer)
        return out

    def sample(
        self, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
    ) -> Ranking:
        """See `Ops.sample`; writes to the scores."""
        q, keys, known, spans = inputs.q, inputs.keys, inputs.known, inputs.candidates.contiguous()
        _check_rows(q=q, keys=keys, unit_table=spans.unit_table)
        _check_dtype(q, keys)
        assert known is not None and known.is_contiguous() and scores.is_contiguous()
        rows, heads, group, dim = q.shape
        coverage, lowest = coverage.contiguous(), torch.empty(rows, heads)
        args = SampleArgs(
            *(q.data_ptr(), keys.data_ptr(), scores.data_ptr(), spans.unit_table.data_ptr()),
            *(spans.begin.data_ptr(), spans.end.data_ptr(), known.data_ptr()),
            *(coverage.data_ptr(), lowest.data_ptr(), None, rows, heads, group, dim),
            *(scores.shape[-1], inputs.unit_size, size, DTYPES[q.dtype], torch.get_num_threads()),
            *(*q.stride()[:3], *keys.stride()[:2], spans.unit_table.stride(0), inputs.scale),
        )
        pointer = ctypes.byref(args)
        args.scratch = self._scratch.pointer(self._library.sample_scratch(pointer))
        self._library.sample(pointer)
        return Ranking(scores, lowest)

    def allot(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
        lowest: torch.Tensor,
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        """See `Ops.allot`."""
        rows, heads, width = scores.shape
        out = torch.empty(rows, heads, dtype=torch.int32)
        whole = (candidates.begin, candidates.end, num_units, counts, pooled, lowest)
        held = [scores.contiguous(), *(one.contiguous() for one in whole)]
        args = AllotArgs(
            *(one.data_ptr() for one in held),
            *(out.data_ptr(), self._scratch.pointer(scores.numel())),
            *(rows, heads, width, torch.get_num_threads(), POOL_FLOOR),
        )
        self._library.allot(ctypes.byref(args))
        return out

    def choose(self, inputs: ScoreInputs, reach: int) -> tuple[Selection, torch.Tensor]:
        """See `Ops.choose`."""
        q, keys, index, spans = inputs.q, inputs.keys, inputs.index, inputs.candidates.contiguous()
        assert isinstance(index, ResidualIndex) and inputs.known is None
        _check_rows(keys=keys)
        _check_dtype(q, keys)
        rows, heads, group, _ = q.shape
        num_units, counts = inputs.num_units.contiguous(), inputs.counts.contiguous()
        kept = counts.tolist()  # a tensor op on so few takes longer
        within = (ctypes.c_int32 * rows)(*(reach * count for count in kept))
        logical = torch.empty(rows, heads, max(kept), dtype=torch.int32)
        physical = torch.empty(rows, heads, max(kept), dtype=torch.int32)
        weights = torch.empty(rows, heads, group, index.table.shape[1] * index.entries)
        codes = self._code_args(q, index, spans, inputs.scale)
        codes.keys, codes.reach = keys.data_ptr(), ctypes.addressof(within)
        codes.reduction = REDUCTIONS[inputs.reduction]
        codes.k_slot, codes.k_head = keys.stride()[:2]
        args = ChooseArgs(
            codes,
            *(num_units.data_ptr(), counts.data_ptr(), logical.data_ptr(), physical.data_ptr()),
            *(weights.data_ptr(), logical.shape[-1], *GAINS),
        )
        pointer = ctypes.byref(args)
        args.codes.scratch = self._scratch.pointer(self._library.choose_scratch(pointer))
        self._library.choose(pointer)
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
        codes = self._code_args(q, index, spans, scale)
        codes.reach, codes.reduction = reach.data_ptr(), REDUCTIONS[reduction]
        codes.width = index.table.shape[1] * index.segment_size  # in tokens, as is the span
        args = WeighArgs(
            codes,
            *(logical.data_ptr(), counts.data_ptr(), weights.data_ptr()),
            *(logical.shape[-1], unit_size, *counts.stride(), *GAINS),
        )
        pointer = ctypes.byref(args)
        args.codes.scratch = self._scratch.pointer(self._library.weigh_scratch(pointer))
        self._library.weigh(pointer)
        return weights

    def estimate(
        self, weights: torch.Tensor, index: ResidualIndex, out: torch.Tensor, lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.estimate`."""
        values, scales, table = index.values, index.scales, index.table
        held = (weights, values, scales, out, lse)
        assert all(one.is_contiguous() for one in held)
        _check_rows(table=table)
        rows, heads, group, width = out.shape
        joined, joined_lse = torch.empty_like(out), torch.empty_like(lse)
        args = EstimateArgs(
            *(weights.data_ptr(), values.data_ptr(), scales.data_ptr(), table.data_ptr()),
            *(out.data_ptr(), lse.data_ptr(), joined.data_ptr(), joined_lse.data_ptr(), None),
            *(rows, heads, group, width, table.shape[1], index.codebooks.shape[2]),
            *(DTYPES[out.dtype], torch.get_num_threads(), table.stride(0)),
        )
        pointer = ctypes.byref(args)
        args.scratch = self._scratch.pointer(self._library.estimate_scratch(pointer))
        self._library.estimate(pointer)
        return joined, joined_lse

    @staticmethod
    def _code_args(
        q: torch.Tensor, index: SegmentIndex | ResidualIndex, spans: Candidates, scale: float
    ) -> CodeArgs:
        """What scoring by codes and the estimate of the rest share; the others are zero."""
        table, codes, books = spans.unit_table, index.codes, index.codebooks
        _check_rows(q=q, unit_table=table, table=index.table)
        assert codes.is_contiguous() and books.is_contiguous()
        rows, heads, group, dim = q.shape
        args = CodeArgs(
            *(q.data_ptr(), None, books.data_ptr(), codes.data_ptr(), *[None] * 6),
            *(index.table.data_ptr(), table.data_ptr(), spans.begin.data_ptr()),
            *(spans.end.data_ptr(), None, None, None, rows, heads, group, dim, table.shape[1]),
            *(index.table.shape[1], index.segment_size, books.shape[2], index.entries),
            *(DTYPES[q.dtype], torch.get_num_threads(), 0, *q.stride()[:3], 0, 0),
            *(index.table.stride(0), table.stride(0), scale),
        )
        if isinstance(index, ResidualIndex):
            for name in ("centroids", "scales", "labels", "places", "ends"):
                assert getattr(index, name).is_contiguous()
                setattr(args, name, getattr(index, name).data_ptr())
        else:
            assert books.dtype is q.dtype
        return args

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """See `Ops.select`."""
        table = candidates.unit_table
        _check_rows(unit_table=table)
        scores, num_units = scores.contiguous(), num_units.contiguous()
        begin, end = candidates.begin.contiguous(), candidates.end.contiguous()
        rows, heads, width = scores.shape
        counts = per_head(counts, heads)
        widest = int(counts.max()) if rows else 0
        logical = torch.empty(rows, heads, widest, dtype=torch.int32)
        physical = torch.empty_like(logical)
        args = SelectArgs(
            *(scores.data_ptr(), table.data_ptr(), begin.data_ptr(), end.data_ptr()),
            *(num_units.data_ptr(), counts.data_ptr(), logical.data_ptr(), physical.data_ptr()),
            self._scratch.pointer(2 * scores.numel()),
            *(rows, heads, width, widest, torch.get_num_threads(), table.stride(0)),
            *counts.stride(),
        )
        self._library.select_units(ctypes.byref(args))
        return Selection(logical, physical, counts)

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: torch.Tensor,
        counts: torch.Tensor,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.attend`."""
        _check_rows(q=q, keys=keys, values=values, table=table)
        _check_dtype(q, keys)
        tail_lengths = tail_lengths.contiguous()
        rows, heads, group, dim = q.shape
        counts = per_head(counts, heads)
        out = q.new_empty(rows, heads, group, values.shape[-1])
        lse = torch.empty(rows, heads, group)
        args = AttendArgs(
            *(q.data_ptr(), keys.data_ptr(), values.data_ptr(), table.data_ptr()),
            *(counts.data_ptr(), tail_lengths.data_ptr(), out.data_ptr(), lse.data_ptr(), None),
            *(rows, heads, group, dim, values.shape[-1], table.shape[2], unit_size),
            *(DTYPES[q.dtype], torch.get_num_threads()),
            *(*q.stride()[:3], *keys.stride()[:2], *values.stride()[:2], *table.stride()[:2]),
            *counts.stride(),
            scale,
        )
        pointer = ctypes.byref(args)
        args.scratch = self._scratch.pointer(self._library.attend_scratch(pointer))
        self._library.attend(pointer)
        return out, lse

    def merge(
        self, out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.merge`."""
        return merge(out_a, lse_a, out_b, lse_b)

    def prefill(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """See `Ops.prefill`."""
        return prefill(q, keys, values, slots, scale)


def _pointer(known: torch.Tensor | None, reduction: Reduction) -> int | None:
    """Address of what joins the softmax."""
    assert known is None or (known.is_contiguous() and reduction is not Reduction.MAX)
    return None if known is None else known.data_ptr()


def _check_rows(**tensors: torch.Tensor) -> None:
    """The kernels walk the last dimension as one run of memory.

    Raises:
        ValueError: a tensor's last dimension is not contiguous.
    """
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name} must be contiguous in its last dimension")


def _check_dtype(q: torch.Tensor, data: torch.Tensor) -> None:
    """Queries and the pool share an element type.

    Raises:
        ValueError: they do not.
    """
    if q.dtype is not data.dtype:
        raise ValueError(f"q must have the pool's dtype {data.dtype}, got {q.dtype}")
