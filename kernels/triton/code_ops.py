"""The launches of `codes` and `clusters`, and the op `score_codes` for tensors of any batch."""

from dataclasses import dataclass

import torch

import triton
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.summaries import CodeSummary, SegmentSummary
from sgl_sparsekv.types import Candidates, Reduction, StepShape

from .codes import codes_kernel
from .launch import early, interpreted, processors
from .spec import CLUSTERS
from .tuning import next_power, score_chunks


@dataclass(frozen=True)
class CodeTuning:
    """Block shapes. A row's result depends on the row alone: none of them is of the batch.

    Attributes:
        run: tokens that are looked up at a time: a whole segment of the default size, so that its
            codebook is read once. Their logits take 16 registers of each thread.
        block: tokens of a block, of which each has a part. Behind the last whole segment a program
            reads the keys of one: half their registers let more programs be resident.
        piece: centroids that are multiplied at a time, all of them by default.
        warps: of a program.
        stages: depth of the load pipeline: from 3 on, a run's record is there when its codebook is
            asked for, and that is on its way while the run before it is looked up.
        registers: most of a thread. Left alone, the compiler spills to make room for more programs.
        parts: blocks whose sums are added at a time: of 32k tokens, as each time is a wait.
    """

    run: int
    block: int
    piece: int
    warps: int
    stages: int
    registers: int
    parts: int = 512


MOST_RUN = 512
"""Tokens of a run."""
KEYS_BYTES, PIECE_BYTES = 16 << 10, 8 << 10
"""Of the keys of a block, and of a piece of a codebook."""
MOST_AHEAD = 32 << 10
"""Bytes of a codebook that is loaded ahead; a larger one is taken as it is needed."""


def code_tuning(q: torch.Tensor, index: SegmentIndex) -> CodeTuning:
    """Constants for queries `[rows, H, G, D]`, whose type is that of the keys, and records."""
    group, dim, size = *q.shape[2:], q.dtype.itemsize
    subspaces, codes = index.codes.shape[2], next_power(max(16, index.entries))
    row = next_power(max(16, dim // subspaces)) * size
    run = min(MOST_RUN, index.segment_size & -index.segment_size)
    return CodeTuning(
        run=run,
        block=min(run, 64, KEYS_BYTES // (next_power(dim) * size)),
        piece=min(codes, max(64 // size, PIECE_BYTES // row)),
        warps=4 if next_power(group) * size <= 8 else 8,
        stages=3 if subspaces * codes * row <= MOST_AHEAD else 1,
        registers=168 if subspaces > 4 else 96 if codes <= 64 else 128,
    )


def least_block(shape: StepShape) -> int:
    """Tokens of the smallest block of any kind of records that has codes."""
    q = torch.empty(1, 1, shape.group, shape.head_dim, dtype=shape.dtype, device="meta")
    coded = (x.summary for x in shape.records if isinstance(x.summary, CodeSummary))
    indexes = (empty_index(summary, shape.head_dim, shape.dtype) for summary in coded)
    return min(code_tuning(q, index).block for index in indexes)


def empty_index(summary: SegmentSummary, dim: int, dtype: torch.dtype) -> SegmentIndex:
    """Records without any contents, for their extents: of keys with `dim` channels."""
    extents = summary.shapes(dim, dim)
    arrays = [
        torch.empty(1, 1, *extent, dtype=kind or dtype, device="meta")
        for extent, kind in (extents["codes"], extents["codebooks"])
    ]
    return SegmentIndex(*arrays, torch.empty(1, 0, dtype=torch.int32, device="meta"))


@dataclass(frozen=True)
class CodePlan:
    """What rows do in a step, int32 `[rows]` each; those of `formula` are ranked."""

    formulas: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor
    dense_layers: torch.Tensor
    formula: int
    goals: torch.Tensor | None = None
    known: torch.Tensor | None = None
    """Where some rows ask for a coverage, see `cover.spread_kernel`."""


def run_codes(
    q: torch.Tensor,
    keys: torch.Tensor,
    table: torch.Tensor,
    index: SegmentIndex,
    plan: CodePlan,
    parts: torch.Tensor,
    ranks: torch.Tensor | None,
    scale: float,
    layer: int,
    unit_size: int,
    mean: bool,
) -> None:
    """One launch of `codes_kernel`: the first when `ranks` is None, else the second."""
    rows, heads, group, dim = q.shape
    if not rows:
        return
    tuned, segments = code_tuning(q, index), index.table.shape[1]
    blocks = triton.cdiv(table.shape[1] * unit_size, tuned.block)
    chunks = score_chunks(rows, heads, blocks, 1, processors())
    into, covers = parts if ranks is None else ranks, plan.goals is not None
    goals = (plan.goals, plan.known) if covers else (parts, parts)
    codes_kernel[(rows, heads, chunks)](
        q, keys, index.codes, index.codebooks, table, index.table, plan.formulas, plan.begins,
        plan.ends, plan.dense_layers, *goals, parts, into, scale, layer,
        chunks, parts.shape[2], into.shape[2], segments, *q.stride()[:3], *keys.stride()[:2],
        *index.codes.stride()[:2], *index.codebooks.stride()[:2], table.stride(0),
        index.table.stride(0), RANKS=ranks is not None, MEAN=mean, CODED=plan.formula,
        GROUP=group, DIM=dim, UNIT=unit_size, SUBSPACES=index.codes.shape[2], CODES=index.entries,
        SEGMENT=index.segment_size, RUN=tuned.run, BLOCK=tuned.block, PIECE=tuned.piece,
        PARTS=tuned.parts, STAGES=tuned.stages, UPCAST=interpreted(), COVERS=covers,
        num_warps=tuned.warps, maxnreg=tuned.registers, **early(),
    )  # fmt: skip


def score_codes(
    q: torch.Tensor,
    keys: torch.Tensor,
    index: SegmentIndex,
    candidates: Candidates,
    scale: float,
    reduction: Reduction,
    unit_size: int = 1,
) -> torch.Tensor:
    """See `Ops.score_codes`; the table of candidates may be in units, they themselves are tokens.

    Raises:
        UnsupportedSetup: reduction max.
    """
    if reduction is Reduction.MAX:
        raise UnsupportedSetup("reduction max has no kernels on device triton")
    rows, heads, group, _ = q.shape
    width = candidates.unit_table.shape[1] * unit_size
    blocks = triton.cdiv(width, code_tuning(q, index).block)
    shape = (rows, heads, blocks, 2, group)
    parts = q.new_empty(shape, dtype=torch.float32)
    ranks = q.new_full((rows, heads, width), -torch.inf, dtype=torch.float32)
    zeros = torch.zeros_like(candidates.begin)
    plan = CodePlan(zeros + CLUSTERS, candidates.begin, candidates.end, zeros, CLUSTERS)
    mean = reduction is Reduction.MEAN_SOFTMAX
    for found in (None, ranks):
        args = (index, plan, parts, found, scale, 0, unit_size, mean)
        run_codes(q, keys, candidates.unit_table, *args)
    return ranks
