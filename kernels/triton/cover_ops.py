"""The launches of `known` and `cover`: of rows that ask for a coverage, and of any batch."""

from dataclasses import dataclass
from typing import Any

import torch

from sgl_sparsekv.types import KeptUnits, ScoreInputs, StepShape

from .cover_buffers import CoverBuffers
from .launch import early, interpreted, tuning
from .sample import cover_kernel, known_kernel
from .spec import CLUSTERS, SAMPLE_TOKENS, SAMPLE_UNITS
from .tuning import (
    COVER_CHUNK,
    COVER_WARPS,
    MOST_REGISTERS,
    SELECT_PARTS,
    Tuning,
    next_power,
)

FEW = {"LEAST_UNITS": SAMPLE_UNITS, "LEAST_TOKENS": SAMPLE_TOKENS}


class CoverRows:
    """Rows of a step that ask for a coverage.

    Args:
        shape: of the steps.
        tuned: constants of this machine.
        held: buffers.
    """

    def __init__(self, shape: StepShape, tuned: Tuning, held: CoverBuffers) -> None:
        self.shape = shape
        self.tuning = tuned
        self.held = held
        self._finer = shape.most_ranked > shape.max_units

    def know(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, buffers: Any, scale: float
    ) -> None:
        """What rows read in any case; in front of `score`. Arguments as of `FusedDecode.decode`."""
        shape, plan = self.shape, buffers.plan
        known_kernel[(shape.heads, q.shape[0])](
            q, keys, buffers.table, self.held.goals, *plan[:4], *plan[5:], self.held.known,
            scale, layer, *q.stride()[:3], *keys.stride()[:2], buffers.table.stride(0),
            GROUP=shape.group, DIM=shape.head_dim, UNIT=shape.unit_size,
            TOKENS=self.tuning.attend_tokens, STAGES=self.tuning.attend_stages,
            UPCAST=interpreted(), FINER=self._finer, num_warps=self.tuning.attend_warps,
            **early(),
        )  # fmt: skip

    def choose(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, buffers: Any, scale: float
    ) -> None:
        """How much rows read; behind `score` and `codes`, in front of `select`."""
        shape, held, plan = self.shape, self.held, buffers.plan
        covered = shape.covered
        cover_kernel[(shape.heads, q.shape[0])](
            q, keys, buffers.table, buffers.logits, buffers.parts, buffers.ranks, held.known,
            held.goals, *plan[:5], *plan[6:], held.lses, held.lowests, held.chosen, held.told,
            scale, layer, layer - covered.start, len(covered), buffers.parts.shape[2],
            buffers.logits.shape[3], buffers.ranks.shape[2], *q.stride()[:3], *keys.stride()[:2],
            buffers.table.stride(0), GROUP=shape.group, DIM=shape.head_dim, UNIT=shape.unit_size,
            SCORES=self.tuning.score_units, PARTS=SELECT_PARTS, CHUNK=COVER_CHUNK,
            SIZE=held.lses.shape[2], **FEW, UPCAST=interpreted(), FINER=self._finer,
            num_warps=COVER_WARPS, maxnreg=MOST_REGISTERS, **early(),
        )  # fmt: skip


def known(
    q: torch.Tensor,
    keys: torch.Tensor,
    kept: KeptUnits,
    tail_lengths: torch.Tensor,
    scale: float,
    unit_size: int,
) -> torch.Tensor:
    """See `Ops.known`."""
    rows, heads, group, dim = q.shape
    out, tuned = q.new_empty(rows, heads, group, dtype=torch.float32), tuning(dim, q.dtype)
    zeros, goals = torch.zeros_like(kept.counts), out.new_ones(rows)
    known_kernel[(heads, rows)](
        q, keys, kept.table, goals, zeros + CLUSTERS, zeros, zeros, kept.counts, tail_lengths,
        zeros, zeros, out, scale, 0, *q.stride()[:3], *keys.stride()[:2], kept.table.stride(0),
        GROUP=group, DIM=dim, UNIT=unit_size, TOKENS=tuned.attend_tokens,
        STAGES=tuned.attend_stages, UPCAST=interpreted(), FINER=False,
        num_warps=tuned.attend_warps,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Covering:
    """How far down the scores of some rows are to be read.

    Attributes:
        lowest: float32 `[rows, H]`, score below which nothing is read.
        chosen: int32 `[rows, H]`, units to read.
    """

    lowest: torch.Tensor
    chosen: torch.Tensor


def covering(
    scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
) -> Covering:
    """See `Ops.cover`; each KV head has a ceiling of its own."""
    rows, heads, group, dim = inputs.q.shape
    spans, q, keys = inputs.candidates, inputs.q, inputs.keys
    zeros, scores = torch.zeros_like(inputs.counts), scores.contiguous()
    room = next_power(max(SAMPLE_UNITS, size))
    lses = scores.new_empty(rows, heads, room, group)
    lowest, chosen = scores.new_empty(rows, heads), zeros.new_empty(rows, heads)
    cover_kernel[(heads, rows)](
        q, keys, spans.unit_table, scores, scores, scores, inputs.known, coverage,
        zeros + CLUSTERS, spans.begin, spans.end, inputs.num_units, inputs.counts, zeros, zeros,
        lses, lowest, chosen, torch.empty_like(chosen), inputs.scale, 0, 0, 1, 0, 0,
        scores.shape[2], *q.stride()[:3], *keys.stride()[:2], spans.unit_table.stride(0),
        GROUP=group, DIM=dim, UNIT=inputs.unit_size, SCORES=1, PARTS=SELECT_PARTS,
        CHUNK=COVER_CHUNK, SIZE=room, LEAST_UNITS=size, LEAST_TOKENS=0, UPCAST=interpreted(),
        FINER=False, num_warps=COVER_WARPS, maxnreg=MOST_REGISTERS,
    )  # fmt: skip
    return Covering(lowest, chosen)
