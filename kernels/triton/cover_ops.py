"""Launches of `known` and of `cover`: of rows that ask for a coverage, and of any batch."""

from dataclasses import dataclass
from typing import Any

import torch

import triton
from sgl_sparsekv.types import KeptUnits, ScoreInputs, StepShape

from .cover import count_kernel, draw_kernel, spread_kernel, weigh_kernel
from .cover_buffers import CoverBuffers, SampleBuffers, allocate_sample
from .launch import early, interpreted, tuning
from .sample import PIECE, known_kernel
from .spec import CLUSTERS, SAMPLE_TOKENS, SAMPLE_UNITS
from .tuning import (
    COVER_WARPS,
    SELECT_PARTS,
    Tuning,
    next_power,
    weigh_warps,
)


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
            q, keys, buffers.table, self.held.goals, *plan[:4], *plan[5:8], self.held.known,
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
        scores = Scores(
            buffers.logits, buffers.parts, buffers.ranks, held.known, held.goals, plan[0], plan[1],
            plan[2], plan[3], buffers.counts, plan[6], plan[7],
        )  # fmt: skip
        how = Sampling(
            held.sample, self.tuning.score_units, shape.group, shape.unit_size, SAMPLE_UNITS,
            SAMPLE_TOKENS, self._finer,
        )  # fmt: skip
        covered = shape.covered
        where = (layer, layer - covered.start, len(covered))
        run_cover(scores, how, q, keys, buffers.table, scale, held.chosen, held.told, where)


@dataclass(frozen=True)
class Scores:
    """Scores of some rows, and what is to be read: arguments of `cover`'s launches by name."""

    logits: torch.Tensor
    parts: torch.Tensor
    ranks: torch.Tensor
    known: torch.Tensor
    goals: torch.Tensor
    formulas: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor
    num_units: torch.Tensor
    counts: torch.Tensor
    dense_layers: torch.Tensor
    finers: torch.Tensor


@dataclass(frozen=True)
class Sampling:
    """How rows are sampled.

    Attributes:
        held: between launches.
        block: units of a block of logits.
        group: query heads per KV head.
        unit: tokens per unit of the table.
        units, tokens: of a sample, at least.
        finer: whether rows may choose in finer units.
    """

    held: SampleBuffers
    block: int
    group: int
    unit: int
    units: int
    tokens: int
    finer: bool


def run_cover(
    rows: Scores,
    how: Sampling,
    q: torch.Tensor,
    keys: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    chosen: torch.Tensor,
    told: torch.Tensor,
    where: tuple[int, int, int],
) -> None:
    """The launches of `cover`; `where`: layer, its place in `told`, and how many stand there."""
    held, (count, heads) = how.held, q.shape[:2]
    layer, ranked, chunks = where[0], rows.ranks.shape[2], how.held.chunks
    grid = (held.programs(count), heads, count)
    asked = (rows.goals, rows.formulas, rows.begins, rows.ends)
    whole = {"CHUNK": held.chunk, "CHUNKS": next_power(chunks)}
    least = {"LEAST_UNITS": how.units, "LEAST_TOKENS": how.tokens, "FINER": how.finer}
    drawn = {"UNIT": how.unit, "SIZE": held.size, **whole, **least}
    launch = {"num_warps": COVER_WARPS, **early()}
    spread_kernel[grid](
        rows.logits, rows.parts, rows.ranks, rows.known, *asked, rows.dense_layers, held.highests,
        held.lowests, held.sums, layer, rows.parts.shape[2], rows.logits.shape[-1], ranked, chunks,
        SCORES=how.block, PARTS=SELECT_PARTS, CHUNK=held.chunk, GROUP=how.group, **launch,
    )  # fmt: skip
    draw_kernel[grid](
        rows.ranks, *asked, rows.dense_layers, rows.finers, held.highests, held.sums, held.drawn,
        layer, ranked, chunks, **drawn, **launch,
    )  # fmt: skip
    weigh_kernel[(triton.cdiv(held.size, PIECE.value), heads, count)](
        q, keys, table, rows.ranks, rows.known, *asked, rows.dense_layers, rows.finers,
        held.highests, held.lowests, held.sums, held.drawn, held.lses, held.shares,
        held.thresholds, held.tickets, scale, layer, ranked, chunks, *q.stride()[:3],
        *keys.stride()[:2], table.stride(0), GROUP=how.group, DIM=q.shape[3], **drawn,
        UPCAST=interpreted(), num_warps=weigh_warps(held.size), **early(),
    )  # fmt: skip
    count_kernel[grid](
        rows.ranks, *asked, rows.num_units, rows.counts, rows.dense_layers, held.thresholds,
        held.above, held.tickets, chosen, told, *where, ranked, CHUNK=held.chunk, **launch,
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
    rows, heads, group, _ = inputs.q.shape
    spans, q, keys = inputs.candidates, inputs.q, inputs.keys
    zeros, scores = torch.zeros_like(inputs.counts), scores.contiguous()
    room, ranked = next_power(max(SAMPLE_UNITS, size)), scores.shape[2]
    held = allocate_sample(rows, heads, group, ranked, room, scores.device)
    chosen = zeros.new_empty(rows, heads)
    given = Scores(
        scores, scores, scores, inputs.known, coverage, zeros + CLUSTERS, spans.begin, spans.end,
        inputs.num_units, inputs.counts, zeros, zeros,
    )  # fmt: skip
    how = Sampling(held, 1, group, inputs.unit_size, size, 0, False)
    told, where = torch.empty_like(chosen), (0, 0, 1)
    run_cover(given, how, q, keys, spans.unit_table, inputs.scale, chosen, told, where)
    return Covering(held.thresholds, chosen)
