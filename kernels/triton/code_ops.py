"""The two launches of `codes`, and both as the op `score_codes` for tensors of any batch."""

from dataclasses import dataclass

import torch

import triton
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.types import Candidates, Reduction

from .codes import codes_kernel
from .launch import interpreted, processors
from .tuning import SELECT_PARTS, score_chunks

CODED = 5
"""The formula of rows that are ranked by codes; behind those of `spec`."""


@dataclass(frozen=True)
class CodeTuning:
    """Block shapes. A row's result depends on the row alone: none of them is of the batch.

    Attributes:
        run: tokens that are looked up at a time: a whole segment of the default size, so that its
            codebook is read once. Four query heads take 16 registers of each thread.
        block: tokens of a block, of which each has a part. Behind the last whole segment a program
            reads the keys of one, so smaller ones spread them over more programs; every program of
            the second launch reads all parts of its row, so larger ones leave fewer.
        warps: of a program.
        stages: depth of the load pipeline: from 3 on, a run's record is there when its codes and
            codebook are asked for.
        registers: most of a thread. Left alone, the compiler spills to make room for more programs.
    """

    run: int = 512
    block: int = 128
    warps: int = 4
    stages: int = 3
    registers: int = 128

    def of_segment(self, size: int) -> tuple[int, int]:
        """Tokens of a run and of a block, in segments of `size`, a multiple of 64."""
        run = min(self.run, size & -size)
        return run, min(self.block, run)


def code_tuning(dtype: torch.dtype) -> CodeTuning:
    """For 16-bit caches; float32 ones are multiplied without matrix units, from more registers."""
    return CodeTuning() if dtype.itemsize == 2 else CodeTuning(block=32, warps=8, stages=1)


@dataclass(frozen=True)
class CodePlan:
    """What a step's rows do; each int32 `[rows]`. See `codes_kernel`."""

    formulas: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor
    dense_layers: torch.Tensor


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
    tuned, segments = code_tuning(q.dtype), index.table.shape[1]
    run, block = tuned.of_segment(index.segment_size)
    width = table.shape[1] * unit_size
    chunks = score_chunks(rows, heads, triton.cdiv(width, run), 1, processors())
    codes_kernel[(rows, heads, chunks)](
        q, keys, index.codes, index.codebooks, table, index.table, plan.formulas, plan.begins,
        plan.ends, plan.dense_layers, parts, parts if ranks is None else ranks, scale, layer,
        chunks, parts.shape[2], width, segments, *q.stride()[:3], *keys.stride()[:2],
        *index.codes.stride()[:2], *index.codebooks.stride()[:2], table.stride(0),
        index.table.stride(0), RANKS=ranks is not None, MEAN=mean, CODED=CODED, GROUP=group,
        DIM=dim, UNIT=unit_size, SUBSPACES=index.codes.shape[2], CODES=index.entries,
        SEGMENT=index.segment_size, RUN=run, BLOCK=block, PARTS=SELECT_PARTS, STAGES=tuned.stages,
        UPCAST=interpreted(), num_warps=tuned.warps, maxnreg=tuned.registers,
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
    _, block = code_tuning(q.dtype).of_segment(index.segment_size)
    shape = (rows, heads, triton.cdiv(width, block), 2, group)
    parts = q.new_empty(shape, dtype=torch.float32)
    ranks = q.new_full((rows, heads, width), -torch.inf, dtype=torch.float32)
    zeros = torch.zeros_like(candidates.begin)
    plan = CodePlan(zeros + CODED, candidates.begin, candidates.end, zeros)
    mean = reduction is Reduction.MEAN_SOFTMAX
    for found in (None, ranks):
        args = (index, plan, parts, found, scale, 0, unit_size, mean)
        run_codes(q, keys, candidates.unit_table, *args)
    return ranks
