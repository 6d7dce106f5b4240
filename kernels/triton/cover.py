"""How many units rows read that ask for a coverage: launches behind `score`.

`sgl_sparsekv.selection.sampling` says what is done and why; the arithmetic is in `sample`. Scores
of a row and KV head are looked at in chunks, by as many programs as the GPU has room for. What
chunks leave for the next launch lies by chunk, so a row gets the same bits from any number of them.

    spread    shares from logits; of a chunk the highest and the lowest, and the sum of its odds
    draw      units in the middle of equal steps of the sum of all odds
    weigh     a piece of the sample against its keys; the program that comes last finds the score
              down to which is read
    count     units down to it; the program that comes last says so

Drawing needs no order of programs or threads: a unit knows how many points of the sample lie below
its end, so a histogram of that says how many units lie in front of each point.
"""

import triton
import triton.language as tl

from . import spec
from .codes import leave_ranks
from .primitives import comes_last, joined, load_group, padded, take_turn
from .sample import (
    BLOCK,
    PIECE,
    covers,
    load_ranks,
    odds_of,
    points_below,
    shares_of,
    threshold,
    weigh,
)
from .select import normalisers

CLUSTERS = tl.constexpr(spec.CLUSTERS)


@triton.jit
def over_chunks(values, begin, end, other, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """What chunks of candidates `[begin, end)` have left, and `other` beside them: `[CHUNKS]`."""
    i = tl.arange(0, CHUNKS)
    there = (i >= begin // CHUNK) & (i < tl.cdiv(end, CHUNK))
    return tl.load(values + i, mask=there, other=other)


@triton.jit
def odds_of_chunks(highests, sums, begin, end, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """The highest score of all, and the odds of chunks `[CHUNKS]` where its own are 1, float64."""
    own = over_chunks(highests, begin, end, float("-inf"), CHUNK, CHUNKS)
    highest = tl.max(own)
    odds = over_chunks(sums, begin, end, 0.0, CHUNK, CHUNKS)
    odds *= tl.where(own > float("-inf"), odds_of(own, highest), 0.0).to(tl.float64)
    return highest, odds


@triton.jit(do_not_specialize=["layer", "blocks", "chunks"])
def spread_kernel(
    logits,
    parts,
    ranks,
    known,
    goals,
    formulas,
    begins,
    ends,
    dense_layers,
    highests,
    lowests,
    sums,
    layer,
    blocks,
    width,
    ranked,
    chunks,
    SCORES: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Scores of the candidates, and the extremes of each chunk. Grid `[programs, H, rows]`.

    Args:
        logits, parts: as `score_kernel` leaves them, in blocks of SCORES.
        ranks: float32 `[rows, H, ranked]`, logs of shares of all attention: written here for rows
            with logits, found here for formulas from CLUSTERS on.
        known: float32 `[rows, H, G]`, see `known_kernel`.
        goals: float32 `[rows]`, see there.
        formulas, begins, ends, dense_layers: int32 `[rows]`, see `select_kernel`.
        highests, lowests: float32 `[rows, H, chunks]`, of what is finite; -inf and inf without any.
        sums: float64 `[rows, H, chunks]`, of odds where those of the chunk's highest are 1.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    if not covers(goals, formulas, dense_layers, row, layer):
        return
    pair = row * tl.num_programs(1) + head
    begin, end = tl.load(begins + row), tl.load(ends + row)
    has_logits = tl.load(formulas + row) < CLUSTERS
    ranks += pair * ranked
    g = tl.arange(0, padded(GROUP))
    whole = tl.zeros([padded(GROUP)], tl.float32)
    if has_logits & (begin < end):
        beside = tl.load(known + pair * GROUP + g, mask=g < GROUP, other=0.0)
        own = parts + pair * blocks * 2 * GROUP
        whole = joined(normalisers(own, begin, end, g, SCORES, GROUP, PARTS), beside)
    first = begin // CHUNK + tl.program_id(0)
    for chunk in range(first, tl.cdiv(end, CHUNK), tl.num_programs(0)):
        unit = chunk * CHUNK + tl.arange(0, CHUNK)
        if has_logits:
            there = (g < GROUP)[:, None] & ((unit >= begin) & (unit < end))[None, :]
            where = logits + pair * GROUP * width + g[:, None] * width + unit[None, :]
            logit = tl.load(where, mask=there, other=float("-inf"))
            leave_ranks(logit, chunk * CHUNK, True, begin, end, whole, ranks, True, GROUP)
            tl.debug_barrier()
        rank = load_ranks(ranks, unit, begin, end)
        least = tl.where(rank == float("-inf"), float("inf"), rank)
        highest, at = tl.max(rank), pair * chunks + chunk
        odds = tl.where(rank > float("-inf"), odds_of(rank, highest), 0.0)
        tl.store(highests + at, highest)
        tl.store(lowests + at, tl.min(least))
        tl.store(sums + at, tl.sum(odds.to(tl.float64)))


@triton.jit
def size_of(finers, row, UNIT: tl.constexpr, LEAST_UNITS: tl.constexpr,
            LEAST_TOKENS: tl.constexpr, FINER: tl.constexpr):  # fmt: skip
    """Units of a row's sample, tokens of one, and how fine that is."""
    finer = tl.load(finers + row) if FINER else 0
    own = UNIT >> finer
    return tl.maximum(LEAST_UNITS, LEAST_TOKENS // own), own, finer


@triton.jit(do_not_specialize=["layer", "chunks"])
def draw_kernel(
    ranks,
    goals,
    formulas,
    begins,
    ends,
    dense_layers,
    finers,
    highests,
    sums,
    drawn,
    layer,
    ranked,
    chunks,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    SIZE: tl.constexpr,
    LEAST_UNITS: tl.constexpr,
    LEAST_TOKENS: tl.constexpr,
    FINER: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """The sample, in ascending order. Grid `[programs, H, rows]`.

    A point belongs to the chunk between whose ends it lies; both ends are sums over the chunks in
    front, which every program adds up alike.

    Args:
        finers: int32 `[rows]`, see `select_kernel`.
        drawn: int32 `[rows, H, SIZE]`, units.
        CHUNKS: of the longest row, at least.
        SIZE: units of the largest sample.

    The others are those of `spread_kernel`.
    """
    take_turn(EARLY)
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    if not covers(goals, formulas, dense_layers, row, layer):
        return
    pair = row * tl.num_programs(1) + head
    begin, end = tl.load(begins + row), tl.load(ends + row)
    first, last = begin // CHUNK, tl.cdiv(end, CHUNK)
    held = pair * chunks
    highest, every = odds_of_chunks(highests + held, sums + held, begin, end, CHUNK, CHUNKS)
    if highest == float("-inf"):
        return
    size, _, _ = size_of(finers, row, UNIT, LEAST_UNITS, LEAST_TOKENS, FINER)
    i = tl.arange(0, CHUNKS)
    whole = tl.sum(every)
    k = tl.arange(0, SIZE)
    for chunk in range(first + tl.program_id(0), last, tl.num_programs(0)):
        passed = tl.sum(tl.where(i < chunk, every, 0.0))
        behind = tl.sum(tl.where(i <= chunk, every, 0.0))
        unit = chunk * CHUNK + tl.arange(0, CHUNK)
        odds = odds_of(load_ranks(ranks + pair * ranked, unit, begin, end), highest)
        sums_here = tl.minimum(passed + tl.cumsum(odds.to(tl.float64)), behind)
        sums_here = tl.where(unit == (chunk + 1) * CHUNK - 1, behind, sums_here)
        below = points_below(sums_here, unit % BLOCK == BLOCK - 1, whole, size)
        in_front = tl.cumsum(tl.histogram(below, SIZE, mask=(below < size) & (unit < end)))
        at = tl.minimum(in_front + chunk * CHUNK, end - 1)
        start = points_below(passed, passed == passed, whole, size)
        start = tl.where(chunk == first, 0, start)
        stop = points_below(behind, behind == behind, whole, size)
        stop = tl.where(chunk == last - 1, size, stop)
        tl.store(drawn + pair * SIZE + k, at, mask=(k >= start) & (k < stop))


@triton.jit(do_not_specialize=["layer", "chunks"])
def weigh_kernel(
    q,
    keys,
    table,
    ranks,
    known,
    goals,
    formulas,
    begins,
    ends,
    dense_layers,
    finers,
    highests,
    lowests,
    sums,
    drawn,
    lses,
    shares,
    thresholds,
    tickets,
    scale,
    layer,
    ranked,
    chunks,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_key_slot,
    stride_key_head,
    stride_table,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    SIZE: tl.constexpr,
    LEAST_UNITS: tl.constexpr,
    LEAST_TOKENS: tl.constexpr,
    UPCAST: tl.constexpr,
    FINER: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """What the units of a sample weigh, and how far down is read. Grid `[pieces, H, rows]`.

    Args:
        q: `[rows, H, G, D]`; keys: `[slots, H, D]`.
        table: int32 `[rows, stride_table]`, see `begin_kernel`.
        lses: float32 `[rows, H, SIZE, G]`, log-sum-exp of scaled q·k over each unit of a sample.
        shares: float32 `[rows, H, 2, SIZE]`, room: see `sample.threshold`.
        thresholds: float32 `[rows, H]`, score below which nothing is read, written for rows with a
            goal.
        tickets: int32 `[rows, H]`, zero before and after.

    The others are those of `draw_kernel` and `spread_kernel`.
    """
    take_turn(EARLY)
    piece = tl.program_id(0)
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    if not covers(goals, formulas, dense_layers, row, layer):
        return
    pair = row * tl.num_programs(1) + head
    size, own, finer = size_of(finers, row, UNIT, LEAST_UNITS, LEAST_TOKENS, FINER)
    pieces = tl.cdiv(size, PIECE)
    if piece >= pieces:
        return
    begin, end = tl.load(begins + row), tl.load(ends + row)
    held = pair * chunks
    highest, every = odds_of_chunks(highests + held, sums + held, begin, end, CHUNK, CHUNKS)
    if highest == float("-inf"):
        if piece == 0:
            tl.store(thresholds + pair, float("inf"))
        return
    lses += pair * SIZE * GROUP
    drawn += pair * SIZE
    at = piece * PIECE + tl.arange(0, PIECE)
    group = load_group(
        q + row * stride_q_row + head * stride_q_head, stride_q_group, GROUP, DIM, UPCAST
    )
    lse = weigh(
        group, keys + head * stride_key_head, table + row * stride_table,
        tl.load(drawn + at, mask=at < size, other=0), at < size, own, finer, scale,
        stride_key_slot, DIM, UPCAST,
    )  # fmt: skip
    lanes = tl.arange(0, padded(GROUP, 16))
    tl.store(lses + at[None, :] * GROUP + lanes[:, None], lse, mask=(lanes < GROUP)[:, None])
    if comes_last(tickets + pair, pieces):
        whole = tl.sum(every).to(tl.float32)
        i, g = tl.arange(0, SIZE), tl.arange(0, padded(GROUP))
        units = tl.load(drawn + i, mask=i < size, other=0)
        rank = load_ranks(ranks + pair * ranked, units, begin, end)
        chances = tl.log(odds_of(rank, highest) / whole) + tl.log(size.to(tl.float32))
        beside = tl.load(known + pair * GROUP + g, mask=g < GROUP, other=0.0)
        weights = shares_of(lses, chances, size, beside, GROUP, SIZE)
        least = over_chunks(lowests + held, begin, end, float("inf"), CHUNK, CHUNKS)
        unread = 1 - tl.load(goals + row)
        room = shares + pair * 2 * SIZE
        lowest = threshold(rank, weights, size, highest, tl.min(least), unread, room, SIZE)
        tl.store(thresholds + pair, lowest)


@triton.jit(do_not_specialize=["layer", "nth", "layers"])
def count_kernel(
    ranks,
    goals,
    formulas,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    thresholds,
    above,
    tickets,
    chosen,
    told,
    layer,
    nth,
    layers,
    ranked,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """How many units one row and KV head read. Grid `[programs, H, rows]`.

    Args:
        num_units, counts: int32 `[rows]`, see `select_kernel`; the counts of rows with a goal are
            ceilings.
        above: int32 `[rows, H]`, zero before and after.
        chosen: int32 `[rows, H]`, units to read: of rows without a goal their counts.
        told: int32 `[rows, layers, H]`, the same by layer, at `nth`, of rows with one.

    The others are those of `weigh_kernel`.
    """
    take_turn(EARLY)
    program, programs = tl.program_id(0), tl.num_programs(0)
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    pair = row * heads + head
    ceiling, begin, end = tl.load(counts + row), tl.load(begins + row), tl.load(ends + row)
    if not covers(goals, formulas, dense_layers, row, layer):
        if program == 0:
            tl.store(chosen + pair, ceiling)
        return
    lowest, count = tl.load(thresholds + pair), tl.zeros([], tl.int32)
    for chunk in range(begin // CHUNK + program, tl.cdiv(end, CHUNK), programs):
        unit = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = (unit >= begin) & (unit < end)
        rank = tl.load(ranks + pair * ranked + unit, mask=inside, other=float("-inf"))
        count += tl.sum((inside & (rank >= lowest)).to(tl.int32))
    tl.atomic_add(above + pair, count, mask=count > 0, sem="relaxed")
    if comes_last(tickets + pair, programs):
        found = tl.atomic_xchg(above + pair, 0)
        always, room = tl.load(num_units + row) - (end - begin), end - begin
        room = tl.minimum(tl.maximum(ceiling - always, 0), room)
        tl.store(chosen + pair, always + tl.minimum(room, found))
        tl.store(told + (row * layers + nth) * heads + head, always + tl.minimum(room, found))
