"""The ops of `sgl_sparsekv.ops.Ops` on the CPU kernels."""

import math
from array import array
from typing import NamedTuple

import torch

from sgl_sparsekv.errors import UnsupportedOnDevice
from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.summaries import CodeSummary, PageSummary, ResidualSummary
from sgl_sparsekv.types import (
    POOL_FLOOR,
    Candidates,
    Goal,
    KeptUnits,
    Ranking,
    Reduction,
    Rest,
    ScoreInputs,
    Selection,
    per_head,
)

from .library import DTYPES, load_library
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


class CpuOps:
    """Fused kernels of one instruction set."""

    name = "cpu"
    has_segments = True

    def __init__(self, level: str | None = None) -> None:
        self._kernels = load_library(level)

    def summaries(self) -> frozenset[str] | None:
        """See `Ops.summaries`."""
        return frozenset(PLANES)

    def summarise(
        self, summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor, units: torch.Tensor
    ) -> None:
        """See `Ops.summarise`."""
        if summary.name not in PLANES:
            raise UnsupportedOnDevice(summary.name, "summarise", self.name)
        units = units.contiguous()
        assert units.dtype is torch.int64 and fields.dtype is keys.dtype
        _, heads, dim = keys.shape
        self._kernels.summarise(
            *(keys.data_ptr(), fields.data_ptr(), units.data_ptr(), units.numel(), heads, dim),
            *(keys.shape[0] // fields.shape[0], DTYPES[keys.dtype], torch.get_num_threads()),
            *(PLANES[summary.name], *_strides(keys=keys)[:2], *_strides(fields=fields)[:3]),
        )

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
        formula = _Formula(number, _strides(fields=fields)[:3], 0, spread)
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
        formula = _Formula(EXACT, (*_strides(keys=keys)[:2], 0), unit_size, 0)
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
        table, dtype = candidates.unit_table, _dtype(q, data)
        begin, end = candidates.begin.contiguous(), candidates.end.contiguous()
        rows, heads, group, dim = q.shape
        out = torch.empty(rows, heads, table.shape[1])
        self._kernels.score(
            *(q.data_ptr(), data.data_ptr(), table.data_ptr(), begin.data_ptr(), end.data_ptr()),
            *(_address(known, reduction), out.data_ptr(), rows, heads, group, dim, table.shape[1]),
            *(formula.unit_size, dtype, torch.get_num_threads(), formula.number),
            *(REDUCTIONS[reduction], *_strides(q=q)[:3], *formula.strides),
            *(_strides(unit_table=table)[0], scale, formula.spread),
        )
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
        assert codes.is_contiguous() and books.is_contiguous() and books.dtype is keys.dtype
        slots, skips, records = slots.contiguous(), skips.contiguous(), records.contiguous()
        _, heads, dim = keys.shape
        self._kernels.index_segments(
            *(keys.data_ptr(), slots.data_ptr(), skips.data_ptr(), records.data_ptr()),
            *(codes.data_ptr(), books.data_ptr(), len(slots), heads, dim),
            *(summary.segment_size, summary.subspaces, summary.codes, summary.cosine),
            *(summary.iterations, summary.capacity or 0),
            *(DTYPES[keys.dtype], torch.get_num_threads(), *_strides(keys=keys)[:2]),
        )

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
        _dtype(q, keys)
        width, spans = candidates.unit_table.shape[1], candidates.contiguous()
        out = torch.empty(*q.shape[:2], width)
        clustered = isinstance(index, ResidualIndex)
        if reach is not None:
            reach = reach.contiguous()
        kernel = self._kernels.score_clusters if clustered else self._kernels.score_codes
        kernel(
            *_codes(q, index, spans, scale, width),
            *(keys.data_ptr(), reach.data_ptr() if clustered and reach is not None else 0),
            *(_address(known, reduction), out.data_ptr(), *_strides(keys=keys)[:2]),
            REDUCTIONS[reduction],
        )
        return out

    def known(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        kept: KeptUnits,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
    ) -> torch.Tensor:
        """See `Ops.known`."""
        dtype, table = _dtype(q, keys), kept.table
        counts, tail_lengths = kept.counts.contiguous(), tail_lengths.contiguous()
        rows, heads, group, dim = q.shape
        lse = torch.empty(rows, heads, group)
        self._kernels.known(
            *(q.data_ptr(), keys.data_ptr(), table.data_ptr(), counts.data_ptr()),
            *(tail_lengths.data_ptr(), lse.data_ptr(), rows, heads, group, dim, unit_size),
            *(dtype, torch.get_num_threads(), *_strides(q=q)[:3], *_strides(keys=keys)[:2]),
            *(_strides(table=table)[0], scale),
        )
        return lse

    def sample(
        self, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
    ) -> Ranking:
        """See `Ops.sample`; writes to the scores."""
        spans, coverage = inputs.candidates.contiguous(), coverage.contiguous()
        lowest = torch.empty(scores.shape[:2])
        self._kernels.sample(*_sample(scores, inputs, spans, coverage, size, lowest.data_ptr()))
        return Ranking(scores, lowest)

    def cover(self, scores: torch.Tensor, inputs: ScoreInputs, goal: Goal, size: int) -> Selection:
        """See `Ops.cover`; writes to the scores."""
        spans, coverage = inputs.candidates.contiguous(), goal.coverage.contiguous()
        num_units, ceilings = inputs.num_units.contiguous(), inputs.counts.contiguous()
        pooled = goal.pooled.contiguous()
        rows, heads, width = scores.shape
        counts = torch.empty(rows, heads, dtype=torch.int32)
        units = torch.empty(2 * rows * heads * width, dtype=torch.int32)
        self._kernels.cover(
            *_sample(scores, inputs, spans, coverage, size, 0),
            *(num_units.data_ptr(), ceilings.data_ptr(), pooled.data_ptr()),
            *(counts.data_ptr(), units.data_ptr(), POOL_FLOOR),
        )
        widest = max(map(max, counts.tolist())) if rows else 0
        shape, strides = (rows, heads, widest), (heads * widest, widest, 1)
        logical = units.as_strided(shape, strides)
        physical = units.as_strided(shape, strides, rows * heads * width)
        return Selection(logical, physical, counts)

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
        self._kernels.allot(
            *(one.data_ptr() for one in held),
            *(out.data_ptr(), rows, heads, width, torch.get_num_threads(), POOL_FLOOR),
        )
        return out

    def choose(self, inputs: ScoreInputs, reach: int) -> tuple[Selection, torch.Tensor]:
        """See `Ops.choose`."""
        q, keys, index = inputs.q, inputs.keys, inputs.index
        assert isinstance(index, ResidualIndex) and inputs.known is None
        _dtype(q, keys)
        rows, heads, group, _ = q.shape
        num_units, counts = inputs.num_units.contiguous(), inputs.counts.contiguous()
        kept = counts.tolist()  # a tensor op on so few takes longer
        within, widest = array("i", [reach * count for count in kept]), max(kept)
        logical = torch.empty(rows, heads, widest, dtype=torch.int32)
        physical = torch.empty(rows, heads, widest, dtype=torch.int32)
        weights = torch.empty(rows, heads, group, index.table.shape[1] * index.entries)
        spans = inputs.candidates.contiguous()
        self._kernels.choose(
            *_codes(q, index, spans, inputs.scale, spans.unit_table.shape[1]),
            *(keys.data_ptr(), within.buffer_info()[0], 0, 0, *_strides(keys=keys)[:2]),
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
            *_codes(q, index, spans, scale, width),
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
            *(DTYPES[out.dtype], torch.get_num_threads(), _strides(table=table)[0]),
        )
        return joined, joined_lse

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """See `Ops.select`."""
        table = candidates.unit_table
        scores, num_units = scores.contiguous(), num_units.contiguous()
        begin, end = candidates.begin.contiguous(), candidates.end.contiguous()
        rows, heads, width = scores.shape
        counts = per_head(counts, heads)
        kept = counts.tolist()  # a tensor op on so few takes longer
        widest = max(map(max, kept)) if rows else 0
        logical = torch.empty(rows, heads, widest, dtype=torch.int32)
        physical = torch.empty(rows, heads, widest, dtype=torch.int32)
        self._kernels.select_units(
            *(scores.data_ptr(), table.data_ptr(), begin.data_ptr(), end.data_ptr()),
            *(num_units.data_ptr(), counts.data_ptr(), logical.data_ptr(), physical.data_ptr()),
            *(rows, heads, width, widest, torch.get_num_threads()),
            *(_strides(unit_table=table)[0], *counts.stride()),
        )
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
        tails, counts = tail_lengths.contiguous(), per_head(counts, q.shape[1])
        out, lse = q.new_empty(*q.shape[:3], values.shape[-1]), torch.empty(q.shape[:3])
        listed = (table, counts, tails, out, lse)
        self._kernels.attend(*_attend(q, (keys, values), listed, scale, unit_size))
        return out, lse

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
            *_attend(q, cache, listed, scale, unit_size),
            *(*(one.data_ptr() for one in held), index.table.data_ptr(), index.table.shape[1]),
            *(index.codebooks.shape[2], _strides(table=index.table)[0]),
        )
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


def _attend(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    listed: tuple[torch.Tensor, ...],
    scale: float,
    unit_size: int,
) -> tuple[float, ...]:
    """`AttendArgs` of args.h; listed are table, counts, tails, and what is written to."""
    (keys, values), (table, counts, *_) = cache, listed
    rows, heads, group, dim = q.shape
    return (
        *(q.data_ptr(), keys.data_ptr(), values.data_ptr(), *(one.data_ptr() for one in listed)),
        *(rows, heads, group, dim, values.shape[-1], table.shape[2], unit_size, _dtype(q, keys)),
        *(torch.get_num_threads(), *_strides(q=q)[:3], *_strides(keys=keys)[:2]),
        *(*_strides(values=values)[:2], *_strides(table=table)[:2], *counts.stride(), scale),
    )


def _sample(
    scores: torch.Tensor,
    inputs: ScoreInputs,
    spans: Candidates,
    coverage: torch.Tensor,
    size: int,
    lowest: int,
) -> tuple[float, ...]:
    """`SampleArgs` of args.h; spans are the inputs' candidates."""
    q, keys, known, table = inputs.q, inputs.keys, inputs.known, spans.unit_table
    dtype = _dtype(q, keys)
    assert known is not None and known.is_contiguous() and scores.is_contiguous()
    rows, heads, group, dim = q.shape
    return (
        *(q.data_ptr(), keys.data_ptr(), scores.data_ptr(), table.data_ptr()),
        *(spans.begin.data_ptr(), spans.end.data_ptr(), known.data_ptr(), coverage.data_ptr()),
        *(lowest, rows, heads, group, dim, scores.shape[-1], inputs.unit_size, size, dtype),
        *(torch.get_num_threads(), *_strides(q=q)[:3], *_strides(keys=keys)[:2]),
        *(_strides(unit_table=table)[0], inputs.scale),
    )


def _codes(
    q: torch.Tensor,
    index: SegmentIndex | ResidualIndex,
    candidates: Candidates,
    scale: float,
    width: int,
) -> tuple[float, ...]:
    """What `CodeArgs` of args.h begins with: queries, records, and the tokens to rank."""
    spans, codes, books, table = candidates.unit_table, index.codes, index.codebooks, index.table
    begin, end = candidates.begin, candidates.end
    assert begin.is_contiguous() and end.is_contiguous()
    assert codes.is_contiguous() and books.is_contiguous()
    rows, heads, group, dim = q.shape
    if isinstance(index, ResidualIndex):
        own = (index.centroids, index.scales, index.labels, index.places, index.ends)
        assert all(one.is_contiguous() for one in own)
        clusters = tuple(one.data_ptr() for one in own)
    else:
        assert books.dtype is q.dtype
        clusters = (0,) * 5
    return (
        *(q.data_ptr(), books.data_ptr(), codes.data_ptr(), *clusters, table.data_ptr()),
        *(spans.data_ptr(), begin.data_ptr(), end.data_ptr(), rows, heads, group, dim, width),
        *(table.shape[1], index.segment_size, books.shape[2], index.entries, DTYPES[q.dtype]),
        *(torch.get_num_threads(), *_strides(q=q)[:3], _strides(table=table)[0]),
        *(_strides(unit_table=spans)[0], scale),
    )


def _address(known: torch.Tensor | None, reduction: Reduction) -> int:
    """Of what joins the softmax; 0 for nothing."""
    assert known is None or (known.is_contiguous() and reduction is not Reduction.MAX)
    return 0 if known is None else known.data_ptr()


def _strides(**named: torch.Tensor) -> tuple[int, ...]:
    """Of one tensor: the kernels walk the last dimension as one run of memory.

    Raises:
        ValueError: its last dimension is not contiguous.
    """
    [(name, tensor)] = named.items()
    strides = tensor.stride()
    if strides[-1] != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} must be contiguous in its last dimension")
    return strides


def _dtype(q: torch.Tensor, data: torch.Tensor) -> int:
    """`DType` of simd.h: queries and the pool share an element type.

    Raises:
        ValueError: they do not.
    """
    if q.dtype is not data.dtype:
        raise ValueError(f"q must have the pool's dtype {data.dtype}, got {q.dtype}")
    return DTYPES[q.dtype]
