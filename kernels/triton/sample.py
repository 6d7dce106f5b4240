"""How much each KV head of a row must read to cover a share of attention, from a few keys.

`sgl_sparsekv.selection.sampling` says what is done and why, `kernels/reference/sample.py` is the
same in torch. Two launches of a layer, for rows that ask for a coverage:

    known    log-sum-exp over sinks, window and tail                        in front of `score`
    cover    shares of the candidates, a sample of them, and how many to read    behind `score`

A row and KV head are one program's, which goes over its scores in pieces of CHUNK: to turn logits
into shares, for the highest and the lowest, for the sum of odds, to draw, and to count. Drawing
needs no order of threads: a unit knows how many points of the sample lie below its end, so a
histogram of that says how many units lie in front of each point.
"""

import triton
import triton.language as tl

from . import spec
from .codes import leave_ranks
from .mass import log_sum
from .primitives import LARGEST, LN2, finer_units, joined, load_group, padded, share_of, take_turn
from .score import group_dot
from .select import normalisers

NOTHING = tl.constexpr(spec.NOTHING)
CLUSTERS = tl.constexpr(spec.CLUSTERS)
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
def draw(ranks, begin, end, highest, size, CHUNK: tl.constexpr, SIZE: tl.constexpr):
    """Units int32 `[SIZE]`, of which the first `size` are drawn, and the sum of all odds."""
    whole = tl.zeros([], tl.float64)
    for first in range(begin // CHUNK * CHUNK, end, CHUNK):
        odds = odds_of(load_ranks(ranks, first + tl.arange(0, CHUNK), begin, end), highest)
        whole += tl.sum(odds.to(tl.float64))
    passed = tl.zeros([], tl.float64)
    units = tl.zeros([SIZE], tl.int32)
    for first in range(begin // CHUNK * CHUNK, end, CHUNK):
        unit = first + tl.arange(0, CHUNK)
        odds = odds_of(load_ranks(ranks, unit, begin, end), highest).to(tl.float64)
        below = points_below(passed + tl.cumsum(odds), unit % BLOCK == BLOCK - 1, whole, size)
        units += tl.histogram(below, SIZE, mask=(below < size) & (unit < end))
        passed += tl.sum(odds)
    units = tl.cumsum(units) + begin // CHUNK * CHUNK
    return tl.minimum(units, end - 1), whole.to(tl.float32)


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
def threshold(scores, weights, size, highest, lowest, unread, SIZE: tl.constexpr):
    """The score below which as much attention lies as may be left unread.

    Args:
        scores, weights: `[SIZE]`, of a sample of `size`: scores, and shares of attention that each
            unit stands for.
        highest, lowest: scores of all candidates.
        unread: share of attention.
    """
    i = tl.arange(0, SIZE)
    real = i < size
    other, one = scores[None, :], scores[:, None]
    tie = (other == one) & (i[None, :] < i[:, None])
    ahead = ((other > one) | tie) & real[None, :]
    place = tl.sum(ahead.to(tl.int32), 1)
    behind = (ahead == 0) & (i[None, :] != i[:, None]) & real[None, :]
    below = tl.sum(tl.where(behind, weights[None, :], 0.0), 1) + weights / 2
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
def weights_of(
    group, keys, table, units, chances, size, lses, beside, own, finer, scale, stride_slot,
    GROUP: tl.constexpr, DIM: tl.constexpr, SIZE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Shares of all attention `[SIZE]` that each unit of a sample stands for.

    Args:
        chances: `[SIZE]`, logs of how often each is drawn.
        lses: float32 `[SIZE, G]`, room; keys are read in pieces.
        beside: `[padded GROUP]`, log-sum-exp over what is read in any case.
    """
    lanes = tl.arange(0, padded(GROUP, 16))
    for first in range(0, size, PIECE):
        at = first + tl.arange(0, PIECE)
        lse = weigh(
            group, keys, table, tl.gather(units, at, 0), at < size, own, finer, scale,
            stride_slot, DIM, UPCAST,
        )  # fmt: skip
        tl.store(lses + at[None, :] * GROUP + lanes[:, None], lse, mask=(lanes < GROUP)[:, None])
    tl.debug_barrier()
    i, g = tl.arange(0, SIZE), tl.arange(0, padded(GROUP))
    there = (g < GROUP)[:, None] & (i < size)[None, :]
    lse = tl.load(lses + i[None, :] * GROUP + g[:, None], mask=there, other=float("-inf"))
    stands = lse - chances[None, :]
    stands = tl.where(there & (stands == stands), stands, float("-inf"))
    best = tl.max(stands, 1)
    every = joined(best + tl.log(tl.sum(share_of(stands, best[:, None]), 1)), beside)
    shares = tl.where(there, tl.exp(stands - every[:, None]), 0.0)
    return tl.sum(tl.where(shares == shares, shares, 0.0), 0) / GROUP


@triton.jit
def share_out(
    logits, parts, ranks, beside, begin, end, width,
    SCORES: tl.constexpr, PARTS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Logs of shares of all attention, by the mean over query heads, from logits `[G, width]`."""
    g = tl.arange(0, padded(GROUP))
    whole = joined(normalisers(parts, begin, end, g, SCORES, GROUP, PARTS), beside)
    for first in range(begin // CHUNK * CHUNK, end, CHUNK):
        unit = first + tl.arange(0, CHUNK)
        there = (g < GROUP)[:, None] & ((unit >= begin) & (unit < end))[None, :]
        where = logits + g[:, None] * width + unit[None, :]
        logit = tl.load(where, mask=there, other=float("-inf"))
        leave_ranks(logit, first, True, begin, end, whole, ranks, True, GROUP)
    tl.debug_barrier()


@triton.jit
def extremes(ranks, begin, end, CHUNK: tl.constexpr):
    """Highest and lowest score of the candidates; -inf and inf where none is finite."""
    highest, lowest = float("-inf"), float("inf")
    for first in range(begin // CHUNK * CHUNK, end, CHUNK):
        rank = load_ranks(ranks, first + tl.arange(0, CHUNK), begin, end)
        highest = tl.maximum(highest, tl.max(rank))
        lowest = tl.minimum(lowest, tl.min(tl.where(rank == float("-inf"), float("inf"), rank)))
    return highest, lowest


@triton.jit
def count_above(ranks, begin, end, lowest, CHUNK: tl.constexpr):
    """Candidates with at least a score; what is not a number has none."""
    count = 0
    for first in range(begin // CHUNK * CHUNK, end, CHUNK):
        unit = first + tl.arange(0, CHUNK)
        inside = (unit >= begin) & (unit < end)
        rank = tl.load(ranks + unit, mask=inside, other=float("-inf"))
        count += tl.sum((inside & (rank >= lowest)).to(tl.int32))
    return count


@triton.jit(do_not_specialize=["layer", "nth", "layers", "blocks"])
def cover_kernel(
    q,
    keys,
    table,
    logits,
    parts,
    ranks,
    known,
    goals,
    formulas,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    finers,
    lses,
    lowests,
    chosen,
    told,
    scale,
    layer,
    nth,
    layers,
    blocks,
    width,
    ranked,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_key_slot,
    stride_key_head,
    stride_table,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SCORES: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    SIZE: tl.constexpr,
    LEAST_UNITS: tl.constexpr,
    LEAST_TOKENS: tl.constexpr,
    UPCAST: tl.constexpr,
    FINER: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """How many units one row and KV head read. Grid `[H, rows]`.

    Args:
        q: `[rows, H, G, D]`; keys: `[slots, H, D]`.
        table: int32 `[rows, stride_table]`, see `begin_kernel`.
        logits, parts: as `score_kernel` leaves them, in blocks of SCORES.
        ranks: float32 `[rows, H, ranked]`, logs of shares of all attention: written here for rows
            with logits, found here for formulas from CLUSTERS on.
        known: float32 `[rows, H, G]`, see `known_kernel`.
        goals: float32 `[rows]`, see there.
        formulas, begins, ends, num_units, counts, dense_layers, finers: int32 `[rows]`, see
            `select_kernel`; the counts of rows with a goal are ceilings.
        lses: float32 `[rows, H, SIZE, G]`, see `weights_of`.
        lowests: float32 `[rows, H]`, score below which nothing is read, written for rows with a
            goal.
        chosen: int32 `[rows, H]`, units to read: of rows without a goal their counts.
        told: int32 `[rows, layers, H]`, the same by layer, at `nth`.
        SIZE: units of the largest sample.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(0)
    pair = row * heads + head
    chosen += pair
    told += (row * layers + nth) * heads + head
    ceiling, begin, end = tl.load(counts + row), tl.load(begins + row), tl.load(ends + row)
    if not covers(goals, formulas, dense_layers, row, layer):
        tl.store(chosen, ceiling)
        return
    always, room = tl.load(num_units + row) - (end - begin), end - begin
    ranks += pair * ranked
    g = tl.arange(0, padded(GROUP))
    beside = tl.load(known + pair * GROUP + g, mask=g < GROUP, other=0.0)
    if (tl.load(formulas + row) < CLUSTERS) & (begin < end):
        share_out(
            logits + pair * GROUP * width, parts + pair * blocks * 2 * GROUP, ranks, beside,
            begin, end, width, SCORES, PARTS, CHUNK, GROUP,
        )  # fmt: skip
    highest, lowest = extremes(ranks, begin, end, CHUNK)
    if highest == float("-inf"):
        tl.store(lowests + pair, float("inf"))
        tl.store(chosen, always)
        tl.store(told, always)
        return
    finer = tl.load(finers + row) if FINER else 0
    own = UNIT >> finer
    size = tl.maximum(LEAST_UNITS, LEAST_TOKENS // own)
    units, odds = draw(ranks, begin, end, highest, size, CHUNK, SIZE)
    drawn = load_ranks(ranks, units, begin, end)
    chances = tl.log(odds_of(drawn, highest) / odds) + tl.log(size.to(tl.float32))
    group = load_group(
        q + row * stride_q_row + head * stride_q_head, stride_q_group, GROUP, DIM, UPCAST
    )
    weights = weights_of(
        group, keys + head * stride_key_head, table + row * stride_table, units, chances, size,
        lses + pair * SIZE * GROUP, beside, own, finer, scale, stride_key_slot,
        GROUP, DIM, SIZE, UPCAST,
    )  # fmt: skip
    unread = 1 - tl.load(goals + row)
    found = threshold(drawn, weights, size, highest, lowest, unread, SIZE)
    room = tl.minimum(tl.maximum(ceiling - always, 0), room)
    count = always + tl.minimum(room, count_above(ranks, begin, end, found, CHUNK))
    tl.store(lowests + pair, found)
    tl.store(chosen, count)
    tl.store(told, count)
