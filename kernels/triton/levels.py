"""Quest in two levels: bounds of segments say in which of them bounds of units are looked at.

    segments   bound of every segment of a row and KV head; the program that comes last opens the
               best: as many as hold 8 times the budget, or for the exact method the budget
    pages      bounds of the units of open segments; a unit of a closed one is not loaded
    pages      exact rows alone: those of segments that were opened since

For `quest_two_level` the first launch over units leaves logits and parts as `score_kernel` does,
with -inf for what was not looked at, so that the softmax is over the rest. For the exact method it
leaves each unit's highest bound of the group, and the program that comes last opens more segments:

    With k units to rank and t the k-th highest bound of those looked at, k units have at least t.
    A unit's bound is no more than its segment's, so one below t (by more than sums of another order
    differ) has no unit of the selection, and all the others are open when `select` looks.

Grid `[rows, H, chunks]`, sized by the GPU. Whatever is written lies at places fixed in the
sequence, so a row is the same in any batch.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import (
    LARGEST,
    PENDING_BLOCK,
    UNIT_BITS,
    comes_last,
    load_group,
    load_planes,
    padded,
    share_of,
    take_turn,
)
from .radix import DIGITS, kept, narrowed, next_digit, score_of, sortable, threshold_of
from .score import upper_bound
from .summarise import summarise_units

TWO_LEVEL = tl.constexpr(spec.TWO_LEVEL)
TWO_LEVEL_EXACT = tl.constexpr(spec.TWO_LEVEL_EXACT)
OVERSAMPLING = tl.constexpr(spec.OVERSAMPLING)
MARGIN = tl.constexpr(spec.MARGIN)
SEGMENT = tl.constexpr(spec.SEGMENT)
FIRST, SINCE = tl.constexpr(1), tl.constexpr(2)
"""What is said of an open segment: by which launch over units it is looked at. A closed one: 0."""


@triton.jit
def highest_of(logit, GROUP: tl.constexpr):
    """Highest of a group `[GROUP or more, n]` -> `[n]`; not a number where one of them is not."""
    logit = tl.where((tl.arange(0, logit.shape[0]) < GROUP)[:, None], logit, float("-inf"))
    # Counted in floats: LLVM joins booleans of one thread in memory.
    broken = tl.sum(tl.where(logit != logit, 1.0, 0.0), 0) > 0
    return tl.where(broken, float("nan"), tl.max(logit, 0))


@triton.jit
def lowest_kept(ranks, begin, end, count, CHUNK: tl.constexpr):
    """The `count`-th highest of ranks `[begin, end)` that other programs wrote, 1 at least."""
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        for first in range(begin, end, CHUNK):
            unit = first + tl.arange(0, CHUNK)
            rank = tl.load(ranks + unit, mask=unit < end, other=0.0, cache_modifier=".cg")
            histogram = narrowed(sortable(rank), unit < end, prefix, count, step, histogram)
        prefix, count = next_digit(histogram, prefix, count)
    return score_of(prefix)


@triton.jit
def open_best(bounds, opened, records, first, last, tokens, segments, WIDEST: tl.constexpr):
    """Open the segments that hold `tokens` and have the highest bounds, and those without a bound.

    Of equals the first; see `two_level._best_segments`.
    """
    segment = tl.arange(0, WIDEST)
    live = (segment >= first) & (segment < last)
    record = tl.load(records + segment, mask=live, other=0)
    bound = tl.load(bounds + segment, mask=live, other=0.0, cache_modifier=".cg")
    key = tl.where(live, sortable(bound), 0).to(tl.uint32)
    wanted = tl.cdiv(tokens, SEGMENT) + tl.sum((record < 0).to(tl.int32))
    least, of_equals = threshold_of(key, live, tl.minimum(wanted, last - first))
    best, of_equals = kept(key, least, of_equals)
    tl.store(opened + segment, tl.where(best, FIRST, 0), mask=segment < segments)


@triton.jit
def open_since(bounds, opened, first, last, least, WIDEST: tl.constexpr):
    """Open segments that may hold a unit of the selection, whose last of those seen has `least`."""
    segment = tl.arange(0, WIDEST)
    live = (segment >= first) & (segment < last)
    bound = tl.load(bounds + segment, mask=live, other=0.0)
    bound = tl.where((bound != bound) | (bound > LARGEST), LARGEST, bound)
    closed = tl.load(opened + segment, mask=live, other=FIRST) == 0
    more = closed & (bound >= least - MARGIN * tl.abs(least))
    tl.store(opened + segment, tl.full([WIDEST], SINCE, tl.int32), mask=more)


@triton.jit(do_not_specialize=["layer", "segments"])
def segments_kernel(
    q,
    planes,
    records,
    formulas,
    begins,
    ends,
    counts,
    dense_layers,
    bounds,
    opened,
    tickets,
    scale,
    layer,
    segments,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_record,
    stride_plane_head,
    stride_plane,
    stride_records,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEST: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Bounds of a share of the segments of one row and KV head; the last program opens the best.

    Args:
        q: `[rows, H, G, D]`.
        planes: `[records, H, 2, D]`, minimum and maximum of a segment's keys.
        records: int32 `[rows, stride_records]`, record of each segment, negative for none.
        formulas, begins, ends, counts, dense_layers: int32 `[rows]`.
        bounds: float32 `[rows, H, segments]`, highest scaled bound of the group, written for
            segments with candidates; +inf where there is no record.
        opened: int32 `[rows, H, segments]`, FIRST or 0, written for all.
        tickets: int32 `[rows, H]`, zero before and after.
        BLOCK: segments that are multiplied at once. WIDEST: those of a row, a power of two.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk, chunks = tl.program_id(2), tl.num_programs(2)
    pair = row * tl.num_programs(1) + head
    formula = tl.load(formulas + row)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    ranked = (formula == TWO_LEVEL) | (formula == TWO_LEVEL_EXACT)
    ranked = ranked & (layer >= tl.load(dense_layers + row))
    if (ranked == 0) | (begin >= end):
        return
    first, last = begin * UNIT // SEGMENT, tl.cdiv(end * UNIT, SEGMENT)
    records += row * stride_records
    bounds += pair * segments
    planes += head * stride_plane_head
    queries = load_group(
        q + row * stride_q_row + head * stride_q_head, stride_q_group, GROUP, DIM, UPCAST
    )
    for block in range(first // BLOCK + chunk, tl.cdiv(last, BLOCK), chunks):
        segment = block * BLOCK + tl.arange(0, BLOCK)
        live = (segment >= first) & (segment < last)
        record = tl.load(records + segment, mask=live, other=-1).to(tl.int64)
        low, high = load_planes(planes, record, record >= 0, stride_record, stride_plane, DIM)
        bound = highest_of(scale * upper_bound(queries, low, high, UPCAST), GROUP)
        tl.store(bounds + segment, tl.where(record >= 0, bound, float("inf")), mask=live)
    if comes_last(tickets + pair, chunks):
        times = tl.where(formula == TWO_LEVEL, OVERSAMPLING, 1)
        tokens = times * tl.load(counts + row) * UNIT
        opened += pair * segments
        open_best(bounds, opened, records, first, last, tokens, segments, WIDEST)


@triton.jit
def looked_at(opened, unit, begin, end, ROUND: tl.constexpr, UNIT: tl.constexpr):
    """Which of some units are candidates in segments that this launch looks at."""
    inside = (unit >= begin) & (unit < end)
    return tl.load(opened + unit * UNIT // SEGMENT, mask=inside, other=0) == ROUND


@triton.jit
def fill_open(
    field, keys, table, opened, begin, end, first, step, stride_unit, stride_plane, stride_slot,
    ROUND: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the fields of units without a stamp that are looked at: every `step`-th block.

    Whoever else writes them in this launch writes the same bits.
    """
    met = tl.zeros([BLOCK], tl.int32)
    for block in range(first, tl.cdiv(end, BLOCK), step):
        unit = block * BLOCK + tl.arange(0, BLOCK)
        look = looked_at(opened, unit, begin, end, ROUND, UNIT)
        met = tl.where(tl.load(table + unit, mask=look, other=0) < 0, 1, met)
    if tl.max(met) > 0:
        for block in range(first, tl.cdiv(end, BLOCK), step):
            for start in range(0, BLOCK, PENDING_BLOCK):
                unit = block * BLOCK + start + tl.arange(0, PENDING_BLOCK)
                look = looked_at(opened, unit, begin, end, ROUND, UNIT)
                entry = tl.load(table + unit, mask=look, other=0)
                if tl.min(entry) < 0:
                    summarise_units(
                        field, keys, (entry & UNIT_BITS).to(tl.int64), entry < 0, stride_unit,
                        stride_plane, stride_slot, False, UNIT, DIM,
                    )  # fmt: skip
        tl.debug_barrier()  # what was stored is read by other threads


@triton.jit(do_not_specialize=["layer", "blocks", "ranked", "segments"])
def pages_kernel(
    q,
    keys,
    min_max,
    table,
    formulas,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    bounds,
    opened,
    logits,
    parts,
    ranks,
    tickets,
    scale,
    layer,
    blocks,
    width,
    ranked,
    segments,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_slot,
    stride_key_head,
    stride_unit,
    stride_field_head,
    stride_plane,
    stride_table,
    ROUND: tl.constexpr,
    HAS_EXACT: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDEST: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Bounds of units in open segments: a share of the candidates of one row and KV head.

    Args:
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`.
        min_max: `[units, H, 2, D]`.
        table: int32 `[rows, stride_table]`, physical units; negative without a stamp.
        formulas, begins, ends, num_units, counts, dense_layers: int32 `[rows]`.
        bounds, opened: as `segments_kernel` leaves them. In the launch FIRST the program that comes
            last of an exact row opens more, for the launch SINCE.
        logits: float32 `[rows, H, G, width]` and parts `[rows, H, blocks, 2, G]`, as of
            `score_kernel`, of rows that are not exact.
        ranks: float32 `[rows, H, ranked]`, final scores of exact rows. Those of the launch SINCE
            join those of the launch FIRST, which writes all candidates.
        tickets: int32 `[rows, H]`, zero before and after.
        ROUND: which launch it is. HAS_EXACT: whether there is more than one.
        WIDEST: segments of a row, a power of two. CHUNK: ranks that are looked at together.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    chunk, chunks = tl.program_id(2), tl.num_programs(2)
    pair = row * tl.num_programs(1) + head
    formula = tl.load(formulas + row)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    exact = formula == TWO_LEVEL_EXACT
    mine = exact | ((formula == TWO_LEVEL) & (ROUND == FIRST))
    mine = mine & (layer >= tl.load(dense_layers + row))
    if (mine == 0) | (begin >= end):
        return
    keys += head * stride_key_head
    min_max += head * stride_field_head
    table += row * stride_table
    opened += pair * segments
    ranks += pair * ranked
    first = begin // BLOCK + chunk
    fill_open(
        min_max, keys, table, opened, begin, end, first, chunks, stride_unit, stride_plane,
        stride_slot, ROUND, UNIT, DIM, BLOCK,
    )  # fmt: skip
    queries = load_group(
        q + row * stride_q_row + head * stride_q_head, stride_q_group, GROUP, DIM, UPCAST
    )
    g = tl.arange(0, padded(GROUP, 16))
    for block in tl.range(first, tl.cdiv(end, BLOCK), chunks, num_stages=STAGES):
        unit = block * BLOCK + tl.arange(0, BLOCK)
        inside = (unit >= begin) & (unit < end)
        look = looked_at(opened, unit, begin, end, ROUND, UNIT)
        entry = tl.load(table + unit, mask=inside, other=0)
        physical = (entry & UNIT_BITS).to(tl.int64)
        low, high = load_planes(min_max, physical, look, stride_unit, stride_plane, DIM)
        logit = scale * upper_bound(queries, low, high, UPCAST)
        logit = tl.where(look[None, :], logit, float("-inf"))
        if HAS_EXACT:
            written = look if ROUND == SINCE else inside
            tl.store(ranks + unit, highest_of(logit, GROUP), mask=written & exact)
        if ROUND == FIRST:
            real = (g < GROUP) & (formula == TWO_LEVEL)
            where = logits + (pair * GROUP + g)[:, None] * width + unit[None, :]
            tl.store(where, logit, mask=real[:, None] & inside[None, :])
            best = tl.max(logit, 1)
            share = tl.where(look[None, :], share_of(logit, best[:, None]), 0.0)
            part = parts + (pair * blocks + block) * 2 * GROUP + g
            tl.store(part, best, mask=real)
            tl.store(part + GROUP, tl.sum(share, 1), mask=real)
    if HAS_EXACT and ROUND == FIRST:  # noqa: SIM102 - the outer one is decided when compiled
        if exact:  # noqa: SIM102
            if comes_last(tickets + pair, chunks):
                kept_ranked = tl.load(counts + row) - tl.load(num_units + row) + end - begin
                if kept_ranked > 0:
                    least = lowest_kept(ranks, begin, end, kept_ranked, CHUNK)
                    open_since(
                        bounds + pair * segments, opened, begin * UNIT // SEGMENT,
                        tl.cdiv(end * UNIT, SEGMENT), least, WIDEST,
                    )  # fmt: skip
