"""The ops of `sgl_sparsekv.ops.Ops`, one kernel each; `fused` is how a server runs them."""

from dataclasses import replace

import torch

import triton
from sgl_sparsekv.errors import UnsupportedOnDevice, UnsupportedSetup
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.summaries import PageSummary
from sgl_sparsekv.types import (
    Candidates,
    Goal,
    KeptUnits,
    Ranking,
    Reduction,
    ScoreInputs,
    Selection,
    StepShape,
    per_head,
)

from .attend import attend_kernel, merge_kernel
from .buffers import allocate
from .code_ops import score_codes
from .cover_ops import covering, known
from .cuda.select import constants_for, launch_select
from .fused import BUILT_IN, FusedDecode, fields_of
from .launch import interpreted, processors, selects_by_cuda, splits, tuning
from .narrow_ops import allocate_narrow, is_narrowed, narrow_and_place
from .planes import Planes, planes_of
from .primitives import PENDING_BLOCK
from .residual import SegmentIndexing
from .score import score_kernel
from .select import select_kernel
from .share import share_kernel
from .spec import EXACT, FORMULAS, LANDMARK, MEAN_STD, MIN_MAX, OWN, SPREAD
from .summarise import summarise_kernel
from .tuning import (
    SELECT_CHUNK,
    SELECT_PARTS,
    SELECT_WARPS,
    score_chunks,
    select_threads,
)

NO_SHARES = "shares of attention are told by `fused` alone on device triton"
NO_POOLS = "device triton samples and allots in one, and from no budget that heads share"


class TritonOps(SegmentIndexing):
    """Each op alone, over tensors of any batch. Used by tests, benchmarks and mixed batches."""

    name = "triton"
    has_segments = True
    takes_planes = True

    def summaries(self) -> frozenset[str] | None:
        """See `Ops.summaries`."""
        return frozenset(BUILT_IN)

    def fused(self, shape: StepShape, watched: bool = False) -> FusedDecode:
        """See `FusedOps.fused`."""
        return FusedDecode(shape, watched)

    def step_bytes(self, shape: StepShape, watched: bool = False) -> int:
        """See `FusedOps.step_bytes`."""
        there = replace(shape, device=torch.device("meta"))
        return allocate(there, tuning(shape.head_dim, shape.dtype).score_units, watched).nbytes

    def summarise(
        self, summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor, units: torch.Tensor
    ) -> None:
        """See `Ops.summarise`."""
        self._check(summary, "summarise")
        if not units.numel():
            return
        count = torch.full((1,), units.numel(), dtype=torch.int32, device=keys.device)
        strides, kinds, planes = fields_of(keys, _both(summary, keys, fields), own_of(summary))
        summarise_kernel[(triton.cdiv(units.numel(), PENDING_BLOCK.value), keys.shape[1])](
            keys, *planes, units.int(), count, units.numel(), *keys.stride()[:2], *strides, **kinds,
            UNIT=keys.shape[0] // fields.shape[0], DIM=keys.shape[2],
        )  # fmt: skip

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
        _check_unknown(known)
        self._check(summary, "score")
        assert summary.score is not None, f"{summary.name} does not rank"
        unit = summary.tokens or 1  # the table lists these themselves
        own, how = own_of(summary), (candidates, scale, reduction, unit)
        return self._score(OWN if own else FORMULAS[summary.name], q, q, fields, *how, own)

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
        _check_unknown(known)
        return self._score(EXACT, q, keys, None, candidates, scale, reduction, unit_size)

    def _score(
        self,
        formula: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        fields: torch.Tensor | None,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        unit_size: int,
        own: Planes | None = None,
    ) -> torch.Tensor:
        if reduction is Reduction.MAX:
            raise UnsupportedSetup("reduction max has no kernels on device triton")
        rows, heads, group, dim = q.shape
        tuned = tuning(dim, q.dtype)
        width, block = candidates.unit_table.shape[1], tuned.score_units
        blocks = triton.cdiv(width, block)
        logits = q.new_empty(rows, heads, group, width, dtype=torch.float32)
        parts = q.new_empty(rows, heads, blocks, 2, group, dtype=torch.float32)
        out = q.new_empty(rows, heads, width, dtype=torch.float32)
        formulas, zeros = constant(q, rows, formula), constant(q, rows, 0)
        field = keys if fields is None else fields
        strides = (0, 0, 0) if fields is None else fields.stride()[:3]
        chunks = score_chunks(rows, heads, blocks, 1, processors()) if rows else 0
        score_kernel[(rows, heads, chunks)](
            q, keys, *[field] * 5, zeros, zeros, candidates.unit_table, zeros, zeros, formulas,
            candidates.begin, candidates.end, zeros, zeros, logits, parts, scale, SPREAD, 0, rows,
            chunks, blocks, width, 0, *q.stride()[:3], *keys.stride()[:2], *strides, *strides,
            candidates.unit_table.stride(0), HAS_MIN_MAX=formula == MIN_MAX,
            HAS_MEAN_STD=formula == MEAN_STD, HAS_EXACT=formula == EXACT,
            HAS_LANDMARK=formula == LANDMARK, HAS_OWN=formula == OWN,
            ESTIMATE=own and own.estimate, WRITE=own and own.write,
            ROWS=1, GROUP=group, DIM=dim, UNIT=unit_size, BLOCK=block, STAGES=tuned.score_stages,
            UPCAST=interpreted(), COVERS=False, num_warps=tuned.score_warps,
            maxnreg=tuned.score_registers,
        )  # fmt: skip
        share_kernel[(rows, heads, triton.cdiv(width, SELECT_CHUNK))](
            logits, parts, candidates.begin, candidates.end, out, blocks, width,
            BLOCK=block, CHUNK=SELECT_CHUNK, PARTS=SELECT_PARTS, GROUP=group,
            MEAN=reduction is Reduction.MEAN_SOFTMAX, num_warps=SELECT_WARPS,
        )  # fmt: skip
        return out

    def score_codes(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        index: SegmentIndex,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        known: torch.Tensor | None = None,
        reach: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Ops.score_codes`, of codes and without clusters that are closed."""
        _check_unknown(known)
        assert reach is None, "clusters are opened on a CPU only"
        return score_codes(q, keys, index, candidates, scale, reduction)

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
        return known(q, keys, kept, tail_lengths, scale, unit_size)

    def sample(
        self, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
    ) -> Ranking:
        """See `Ops.sample`: a part of `cover` here."""
        raise UnsupportedSetup(NO_POOLS)

    def allot(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
        lowest: torch.Tensor,
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        """See `Ops.allot`: a part of `cover` here."""
        raise UnsupportedSetup(NO_POOLS)

    def cover(self, scores: torch.Tensor, inputs: ScoreInputs, goal: Goal, size: int) -> Selection:
        """See `Ops.cover`; a pool that KV heads share is refused."""
        if goal.pooled.any():
            raise UnsupportedSetup(NO_POOLS)
        counts = covering(scores, inputs, goal.coverage, size).chosen
        return self.select(scores, inputs.candidates, inputs.num_units, counts)

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """See `Ops.select`."""
        rows, heads, width = scores.shape
        widest = int(counts.max()) if rows else 0
        logical = scores.new_full((rows, heads, widest), -1, dtype=torch.int32)
        physical = torch.zeros_like(logical)
        table, chunks = candidates.unit_table, triton.cdiv(width, SELECT_CHUNK)
        zeros = constant(scores, rows, 0)
        rows_of = (
            table, constant(scores, rows, MIN_MAX), candidates.begin, candidates.end, num_units,
            counts, zeros,
        )  # fmt: skip
        lists = (physical, logical, run_offsets(rows * heads, widest, scores.device))
        numbers, sizes = (0, 0, width), (widest, table.stride(0))
        chosen, covers = Selection(logical, physical, per_head(counts, heads)), counts.dim() == 2
        if selects_by_cuda(width) and not covers:
            tensors = (scores.contiguous(), None, *rows_of, *lists)
            launch_select(constants_for(width), heads, rows, tensors, (*numbers, *sizes, 1))
            return chosen
        room = chunks * SELECT_CHUNK if chunks > 1 else 0
        best, tickets = logical.new_empty(rows, heads, 2, room), constant(scores, rows * heads, 0)
        held = None
        if is_narrowed(width, widest):
            held = allocate_narrow(rows, heads, width, scores.device)
        warps, registers = select_threads(1, False, held is not None)
        select_kernel[(chunks, heads, rows)](
            scores.contiguous(), scores, scores, *rows_of, zeros, *lists, best,
            tickets if held is None else held.bins, best, tickets, zeros, counts.contiguous(),
            tickets, tickets, *numbers, 0, *sizes, 0, 1,
            BLOCK=1, CHUNK=SELECT_CHUNK, PARTS=SELECT_PARTS, GROUP=1, MEAN=False, REDUCED=True,
            COPY_DENSE=False, LOGICAL=True, FINER=False, CODED=False, COUNTED=held is not None,
            MARKED=False, COVERS=covers, HELD=False, num_warps=warps, maxnreg=registers,
        )  # fmt: skip
        if held is not None:
            how, told = (0, widest, 1), (None, counts.contiguous() if covers else None)
            narrow_and_place(
                held, best, tickets, (*rows_of, zeros), lists, *told, None, how, watched=True
            )
        return chosen

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
        rows, heads, group, dim = q.shape
        chosen, covers = counts.contiguous(), counts.dim() == 2
        vdim, shares, tuned = values.shape[-1], splits(heads), tuning(dim, q.dtype)
        out = q.new_empty(rows, heads, group, vdim)
        lse = q.new_empty(rows, heads, group, dtype=torch.float32)
        parts = q.new_empty(rows, heads, shares, group, vdim, dtype=torch.float32)
        part_lse = q.new_empty(rows, heads, shares, group, dtype=torch.float32)
        row_runs, head_runs = table.stride()[:2]
        offsets = (
            torch.arange(rows, device=q.device)[:, None] * row_runs
            + torch.arange(heads, device=q.device) * head_runs
        )
        zeros = constant(q, rows, 0)
        attend_kernel[(shares, heads, rows)](
            q, keys, values, zeros, table, offsets, constant(q, rows, MIN_MAX), counts, counts,
            tail_lengths, zeros, zeros, zeros, parts, part_lse, constant(q, rows * heads, 0), out,
            lse, zeros, zeros, zeros, zeros, chosen, scale, 0, 0, 0, *q.stride()[:3],
            *keys.stride()[:2],
            *values.stride()[:2], 0, 0, HEADS=heads, GROUP=group, DIM=dim, VALUE_DIM=vdim,
            UNIT=unit_size, SPLITS=shares, REST=0, TOKENS=tuned.attend_tokens,
            STAGES=tuned.attend_stages, UPCAST=interpreted(), VIEWS=False, FINER=False,
            COVERS=covers, num_warps=tuned.attend_warps,
        )  # fmt: skip
        return out, lse

    def merge(
        self, out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.merge`."""
        out, lse = torch.empty_like(out_a.contiguous()), torch.empty_like(lse_a.contiguous())
        block = 16
        merge_kernel[(triton.cdiv(lse.numel(), block),)](
            out_a.contiguous(), lse_a.contiguous(), out_b.contiguous(), lse_b.contiguous(),
            out, lse, lse.numel(), VALUE_DIM=out.shape[-1], BLOCK=block,
        )  # fmt: skip
        return out, lse

    def _check(self, summary: PageSummary, op: str) -> None:
        if summary.name not in BUILT_IN and not summary.kernels:
            raise UnsupportedOnDevice(summary.name, op, self.name)


def own_of(summary: PageSummary) -> Planes | None:
    """Planes that a summary brings, None where it is built in."""
    return planes_of(summary) if summary.kernels else None


def _both(
    summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The field that is wanted; landmarks and misfits are written together."""
    found = {summary.name: fields}
    if summary.name == "landmark":
        found["misfit"] = fields.new_empty(*fields.shape[:2], 1, 1)
    if summary.name == "misfit":
        found["landmark"] = fields.new_empty(*fields.shape[:2], 1, keys.shape[2])
    return found


def _check_unknown(known: torch.Tensor | None) -> None:
    if known is not None:
        raise UnsupportedSetup(NO_SHARES)


def constant(like: torch.Tensor, size: int, value: int) -> torch.Tensor:
    """int32 `[size]` filled with a value, on the device of `like`."""
    return torch.full((size,), value, dtype=torch.int32, device=like.device)


def run_offsets(pairs: int, length: int, device: torch.device) -> torch.Tensor:
    """int64 `[pairs]`: where runs of `length` begin."""
    return torch.arange(pairs, device=device) * length
