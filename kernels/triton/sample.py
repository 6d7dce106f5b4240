"""What a row has of its attention in any case, and in the units of a sample.

`kernels/reference/sample.py` is the same in torch. `known` is a launch in front of `score`; the
rest is for those behind it, which choose how much rows read: `cover`.
"""

import triton
import triton.language as tl

from . import spec
from .mass import log_sum
from .primitives import LARGEST, LN2, finer_units, joined, load_group, padded, share_of, take_turn
from .score import group_dot

NOTHING = tl.constexpr(spec.NOTHING)
POWER = tl.constexpr(spec.SAMPLE_POWER)
BLOCK = tl.constexpr(spec.SAMPLE_BLOCK)
"""Units whose odds the reference adds up first: a point on the end of a block is of its last."""
PIECE = tl.constexpr(16)
"""Units whose keys are looked at together."""


@triton.jit
def covers(goals, formulas, dense_layers, row, layer):
    """Whether a row reads as much as covers its goal in a layer."""
    selects = (tl.load(formulas + row) != NOTHING) & (layer >= tl.load(dense_layers + row))
    return (tl.load(goals + row) > 0) & selects


@triton.jit(do_not_specialize=["layer"])
def known_kernel(
    q, keys, table, goals, formulas, begins, ends, num_units, tails, dense_layers, finers, known,
    scale, layer,
    stride_q_row, stride_q_head, stride_q_group, stride_key_slot, stride_key_head, stride_table,
    GROUP: tl.constexpr, DIM: tl.constexpr, UNIT: tl.constexpr, TOKENS: tl.constexpr,
    STAGES: tl.constexpr, UPCAST: tl.constexpr, FINER: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """float32 `[rows, H, G]`, natural, over what a row reads in any case. Grid `[H, rows]`.

    Args:
        goals: float32 `[rows]`, share of attention to cover; 0 for rows that ask for none.
        EARLY: see `take_turn`.

    The others are those of `attend_kernel` and `select_kernel`.
    """
    take_turn(EARLY)
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if not covers(goals, formulas, dense_layers, row, layer):
        return
    unit = UNIT >> tl.load(finers + row) if FINER else UNIT
    tokens = (tl.load(num_units + row) - 1) * unit + tl.load(tails + row)
    q += row * stride_q_row + head * stride_q_head
    group = load_group(q, stride_q_group, GROUP, DIM, UPCAST)
    keys += head * stride_key_head
    table += row * stride_table
    front = log_sum(
        group, keys, table, 0, tl.load(begins + row) * unit, scale, stride_key_slot,
        UNIT, DIM, TOKENS, STAGES, UPCAST,
    )  # fmt: skip
    back = log_sum(
        group, keys, table, tl.load(ends + row) * unit, tokens, scale, stride_key_slot,
        UNIT, DIM, TOKENS, STAGES, UPCAST,
    )  # fmt: skip
    g = tl.arange(0, padded(GROUP, 16))
    pair = row * tl.num_programs(0) + head
    tl.store(known + pair * GROUP + g, joined(front * LN2, back * LN2), mask=g < GROUP)


@triton.jit
def load_ranks(ranks, unit, begin, end):
    """Scores of a piece of the candidates; -inf for what is none or not finite."""
    rank = tl.load(ranks + unit, mask=(unit >= begin) & (unit < end), other=float("-inf"))
    return tl.where(tl.abs(rank) <= LARGEST, rank, float("-inf"))


@triton.jit
def odds_of(rank, highest):
    """Odds of being drawn, float32, at most 1."""
    return tl.exp((rank - highest) * POWER)


@triton.jit
def points_below(ends, last, whole, size):
    """How many of `size` points, in the middle of equal steps of `whole`, lie below sums of odds.

    Args:
        ends: float64 `[n]`; last: bool `[n]`, those that a point may lie on.
    """
    steps = size.to(tl.float64)
    count = tl.ceil(ends * steps / whole - 0.5).to(tl.int32)
    count = tl.minimum(tl.maximum(count, 0), size)
    before = whole * (count.to(tl.float64) - 0.5) / steps
    less = tl.where(last, before > ends, before >= ends) & (count > 0)
    count = tl.where(less, count - 1, count)
    after = whole * (count.to(tl.float64) + 0.5) / steps
    more = tl.where(last, after <= ends, after < ends) & (count < size)
    return tl.where(more, count + 1, count)


@triton.jit
def weigh(
    group, keys, table, unit, real, own, finer, scale, stride_slot, DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp `[16 or more, units]` of scaled q·k over each of some whole units, of `own`
    tokens."""
    physical = finer_units(table, unit, real, finer).to(tl.int64)
    d = tl.arange(0, padded(DIM))
    best = tl.full([group.shape[0], unit.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([group.shape[0], unit.shape[0]], tl.float32)
    for token in range(own):
        where = (physical * own + token) * stride_slot
        mask = real[:, None] & (d < DIM)[None, :]
        rows = tl.load(keys + where[:, None] + d[None, :], mask=mask, other=0.0)
        logit = scale * group_dot(group, rows, UPCAST)
        higher = tl.maximum(best, logit)
        total = total * share_of(best, higher) + share_of(logit, higher)
        best = higher
    return best + tl.log(total)


@triton.jit
def threshold(
    scores, weights, size, highest, lowest, unread, room, SIZE: tl.constexpr
):  # fmt: skip
    """The score below which as much attention lies as may be left unread.

    Args:
        scores, weights: `[SIZE]`, of a sample of `size`: scores, and shares of attention that each
            unit stands for.
        highest, lowest: scores of all candidates.
        unread: share of attention.
        room: float32 `[2, SIZE]`, for both: all pairs of a sample are too many for registers.
    """
    i = tl.arange(0, SIZE)
    real = i < size
    tl.store(room + i, scores)
    tl.store(room + SIZE + i, weights)
    tl.debug_barrier()
    place = tl.zeros([SIZE], tl.int32)
    below = weights / 2
    for first in range(0, SIZE, PIECE):
        j = first + tl.arange(0, PIECE)
        other, one = tl.load(room + j)[None, :], scores[:, None]
        tie = (other == one) & (j[None, :] < i[:, None])
        there = (j < size)[None, :]
        ahead = ((other > one) | tie) & there
        behind = (ahead == 0) & (j[None, :] != i[:, None]) & there
        share = tl.load(room + SIZE + j)[None, :]
        place += tl.sum(ahead.to(tl.int32), 1)
        below += tl.sum(tl.where(behind, share, 0.0), 1)
    mass = tl.sum(weights)
    right = 1 + tl.sum((real & (below > unread)).to(tl.int32))
    left = real & (place == right - 2)
    start = tl.where(right == 1, highest, tl.sum(tl.where(left, scores, 0.0)))
    high = tl.where(right == 1, mass, tl.sum(tl.where(left, below, 0.0)))
    next_one = real & (place == right - 1)
    stop = tl.where(right > size, lowest, tl.sum(tl.where(next_one, scores, 0.0)))
    low = tl.where(right > size, 0.0, tl.sum(tl.where(next_one, below, 0.0)))
    part = tl.where(high > low, (high - unread) / (high - low), 0.0)
    part = tl.minimum(tl.maximum(part, 0.0), 1.0)
    return tl.where(mass <= unread, float("inf"), start + part * (stop - start))


@triton.jit
def shares_of(lses, chances, size, beside, GROUP: tl.constexpr, SIZE: tl.constexpr):
    """Shares of all attention `[SIZE]` that each unit of a sample stands for.

    Args:
        lses: float32 `[SIZE, G]`, log-sum-exp of each unit, which other programs wrote.
        chances: `[SIZE]`, logs of how often each is drawn.
        beside: `[padded GROUP]`, log-sum-exp over what is read in any case.
    """
    i, g = tl.arange(0, SIZE), tl.arange(0, padded(GROUP))
    there, where = (g < GROUP)[:, None] & (i < size)[None, :], i[None, :] * GROUP + g[:, None]
    lse = tl.load(lses + where, mask=there, other=float("-inf"), cache_modifier=".cg")
    stands = lse - chances[None, :]
    stands = tl.where(there & (stands == stands), stands, float("-inf"))
    best = tl.max(stands, 1)
    every = joined(best + tl.log(tl.sum(share_of(stands, best[:, None]), 1)), beside)
    shares = tl.where(there, tl.exp(stands - every[:, None]), 0.0)
    return tl.sum(tl.where(shares == shares, shares, 0.0), 0) / GROUP
