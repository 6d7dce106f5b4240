"""The ops of `sgl_sparsekv.ops.Ops` on the CPU kernels."""

import math
from array import array
from itertools import chain
from typing import NamedTuple

import torch

from sgl_sparsekv.errors import UnsupportedOnDevice
from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.summaries import PageSummary
from sgl_sparsekv.types import (
    POOL_FLOOR,
    Candidates,
    Goal,
    KeptUnits,
    Ranking,
    Reduction,
    ScoreInputs,
    Selection,
    TokenLists,
    per_head,
)

from .arguments import REDUCTIONS, address, attend_args, dtype_of, sample_args, strides_of
from .layers import CpuLayerOps
from .library import DTYPES, load_library
from .prefill import merge, prefill
from .segments import CpuSegmentOps

UPPER_BOUND, EXPECTED_MAXIMUM, EXACT, PRODUCT = range(4)
"""`Formula` of args.h."""
FORMULAS = {"min_max": UPPER_BOUND, "mean_std": EXPECTED_MAXIMUM, "landmark": PRODUCT}
PLANES = {"min_max": 0, "mean_std": 1, "landmark": 2, "misfit": 3}
"""`Planes` of args.h."""
SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))


class _Formula(NamedTuple):
    """A formula of args.h and how its data lies."""

    number: int
    strides: tuple[int, ...]
    unit_size: int
    spread: float


class CpuOps(CpuSegmentOps, CpuLayerOps):
    """Fused kernels of one instruction set."""

    name = "cpu"
    has_segments = True
    takes_planes = False

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
            *(PLANES[summary.name], *strides_of(keys=keys)[:2], *strides_of(fields=fields)[:3]),
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
        formula = _Formula(number, strides_of(fields=fields)[:3], 0, spread)
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
        formula = _Formula(EXACT, (*strides_of(keys=keys)[:2], 0), unit_size, 0)
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
        table, dtype = candidates.unit_table, dtype_of(q, data)
        begin, end = candidates.begin.contiguous(), candidates.end.contiguous()
        rows, heads, group, dim = q.shape
        out = torch.empty(rows, heads, table.shape[1])
        self._kernels.score(
            *(q.data_ptr(), data.data_ptr(), table.data_ptr(), begin.data_ptr(), end.data_ptr()),
            *(address(known, reduction), out.data_ptr(), rows, heads, group, dim, table.shape[1]),
            *(formula.unit_size, dtype, torch.get_num_threads(), formula.number),
            *(REDUCTIONS[reduction], *strides_of(q=q)[:3], *formula.strides),
            *(strides_of(unit_table=table)[0], scale, formula.spread),
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
        dtype, table = dtype_of(q, keys), kept.table
        counts, tail_lengths = kept.counts.contiguous(), tail_lengths.contiguous()
        rows, heads, group, dim = q.shape
        lse = torch.empty(rows, heads, group)
        self._kernels.known(
            *(q.data_ptr(), keys.data_ptr(), table.data_ptr(), counts.data_ptr()),
            *(tail_lengths.data_ptr(), lse.data_ptr(), rows, heads, group, dim, unit_size),
            *(dtype, torch.get_num_threads(), *strides_of(q=q)[:3], *strides_of(keys=keys)[:2]),
            *(strides_of(table=table)[0], scale),
        )
        return lse

    def sample(
        self, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
    ) -> Ranking:
        """See `Ops.sample`; writes to the scores."""
        spans, coverage = inputs.candidates.contiguous(), coverage.contiguous()
        lowest = torch.empty(scores.shape[:2])
        self._kernels.sample(*sample_args(scores, inputs, spans, coverage, size, lowest.data_ptr()))
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
            *sample_args(scores, inputs, spans, coverage, size, 0),
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
            *(strides_of(unit_table=table)[0], *counts.stride()),
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
        self._kernels.attend(*attend_args(q, (keys, values), listed, scale, unit_size))
        return out, lse

    def attend_lists(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        lists: TokenLists,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.attend_lists`."""
        rows, heads, group, dim = q.shape
        out, lse = q.new_empty(rows, heads, group, values.shape[-1]), torch.empty(q.shape[:3])
        counts, found = array("i", chain.from_iterable(lists.counts)), array("q")
        for places, slots in zip(lists.places, lists.slots, strict=True):
            assert places.dtype is slots.dtype is torch.int32 and slots.stride(0) == 1
            head, _ = strides_of(places=places)
            found.extend((places.data_ptr(), slots.data_ptr(), head))
        self._kernels.attend(
            *(q.data_ptr(), keys.data_ptr(), values.data_ptr(), 0, counts.buffer_info()[0], 0),
            *(found.buffer_info()[0], out.data_ptr(), lse.data_ptr()),
            *(rows, heads, group, dim, values.shape[-1]),
            *(lists.widest, 1, dtype_of(q, keys), torch.get_num_threads(), *strides_of(q=q)[:3]),
            *(*strides_of(keys=keys)[:2], *strides_of(values=values)[:2], 0, 1, heads, 1, scale),
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
