"""Scores of candidate units, and in the same launch the summaries of units that just filled.

Grid `[groups of rows, H, chunks + workers]`, sized by the GPU and not by the model's context: a
program walks every `chunks`-th block of units, so its loads run ahead of its products. ROWS rows
stand together, their query heads in one matrix product. As far as their tables say the same, a
block is read once for all of them; behind that, each program goes on with one row of its group.

What a program leaves behind is `logits[row, head, g, u]`, the scaled estimate per query head, and
per block of units the maximum and the sum of exponentials that the softmax over all candidates
needs; `select` joins them. Both lie at places fixed in the sequence, whoever wrote them.

Fields of a unit without a stamp (the sign of its entry in the table) are never taken as they are:
a program that meets one writes them from its keys and walks again. So a page that was filled unseen
is right in its first step. Whoever else writes them in this launch, the workers among them, writes
the same bits, so nobody has to wait.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import (
    PENDING_BLOCK,
    UNIT_BITS,
    key_rows,
    load_planes,
    padded,
    share_of,
    take_turn,
)
from .summarise import CHUNK, summarise_landmarks, summarise_pending, summarise_units

MIN_MAX = tl.constexpr(spec.MIN_MAX)
MEAN_STD = tl.constexpr(spec.MEAN_STD)
EXACT = tl.constexpr(spec.EXACT)
LANDMARK = tl.constexpr(spec.LANDMARK)
OWN = tl.constexpr(spec.OWN)
BOX_REACH = tl.constexpr(spec.BOX_REACH)
SPREAD_REACH = tl.constexpr(spec.SPREAD_REACH)
MARK_STAGES, OWN_STAGES = tl.constexpr(3), tl.constexpr(2)
"""Depth of the pipeline of landmarks, and of planes that a method brings: with more in flight, rows
that stand together spill."""


@triton.jit
def upper_bound(q, low, high, UPCAST: tl.constexpr, reach=1.0, COVERS: tl.constexpr = False):
    """Quest's bound `[G, units]`: sum over channels of max(q low, q high).

    With COVERS, from the middle of a unit's box `reach` `[G]` of the way to it.
    """
    positive = tl.where(q > 0, q, 0.0).to(q.dtype)
    negative = tl.where(q < 0, q, 0.0).to(q.dtype)
    if COVERS:
        wide, near = q.to(tl.float32), (1 - reach[:, None]) / 2
        positive = (wide * tl.where(q > 0, 1 - near, near)).to(q.dtype)
        negative = (wide * tl.where(q < 0, 1 - near, near)).to(q.dtype)
    if UPCAST:
        low, high = low.to(tl.float32), high.to(tl.float32)
    bound = tl.dot(positive, tl.trans(high), input_precision="ieee")
    return tl.dot(negative, tl.trans(low), acc=bound, input_precision="ieee")


@triton.jit
def expected_maximum(q, mean, std, spread, UPCAST: tl.constexpr):
    """Estimate `[G, units]`: mean + spread standard deviations, one number or one of each lane.

    The squares are multiplied in TF32 (11 bits) where the stored planes have no more than that.
    """
    PRECISION: tl.constexpr = "ieee" if mean.dtype == tl.float32 else "tf32"
    deviation = std.to(tl.float32)
    square = q.to(tl.float32) * q.to(tl.float32)
    variance = tl.dot(square, tl.trans(deviation * deviation), input_precision=PRECISION)
    return group_dot(q, mean, UPCAST) + spread * tl.sqrt(variance)


@triton.jit
def exact_share(
    q, keys, units, inside, stride_slot, scale, UNIT: tl.constexpr, DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp `[G, units]` of scaled q·k over the tokens of each unit."""
    logit = scale * group_dot(q, key_rows(keys, units, inside, 0, stride_slot, UNIT, DIM), UPCAST)
    best = logit
    total = tl.full(logit.shape, 1.0, tl.float32)
    for token in range(1, UNIT):
        row = key_rows(keys, units, inside, token, stride_slot, UNIT, DIM)
        logit = scale * group_dot(q, row, UPCAST)
        higher = tl.maximum(best, logit)
        total = total * share_of(best, higher) + share_of(logit, higher)
        best = higher
    return best + tl.log(total)


@triton.jit
def group_dot(q, rows, UPCAST: tl.constexpr):
    """q `[G, D]`, rows `[n, D]` -> `[G, n]` in float32."""
    if UPCAST:
        rows = rows.to(tl.float32)
    return tl.dot(q, tl.trans(rows), input_precision="ieee")


@triton.jit
def estimate(
    q, field, keys, units, known, scale, spread, reach, stride_unit, stride_plane, stride_slot,
    FORMULA: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, UPCAST: tl.constexpr,
    COVERS: tl.constexpr, ESTIMATE: tl.constexpr,
):  # fmt: skip
    """Scaled estimates `[G, units]` of a block of units; those that are not known are not read."""
    if FORMULA == EXACT:
        share = exact_share(q, keys, units, known, stride_slot, scale, UNIT, DIM, UPCAST)
    elif FORMULA == LANDMARK:
        share = scale * group_dot(q, key_rows(field, units, known, 0, stride_unit, 1, DIM), UPCAST)
    elif FORMULA == OWN:
        share = scale * ESTIMATE(q, field, units, known, stride_unit, stride_plane, DIM, UPCAST)
    else:
        a, b = load_planes(field, units, known, stride_unit, stride_plane, DIM)
        if FORMULA == MIN_MAX:
            share = scale * upper_bound(q, a, b, UPCAST, reach, COVERS)
        else:
            if COVERS:
                spread *= reach[:, None]
            share = scale * expected_maximum(q, a, b, spread, UPCAST)
    return share


@triton.jit
def score_blocks(
    q, field, keys, table, logits, parts, pair, g, real, begin, end, low, high, first, step, trust,
    scale, spread, reach, width, blocks, stride_unit, stride_plane, stride_slot,
    FORMULA: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr, COVERS: tl.constexpr,
    ESTIMATE: tl.constexpr,
):  # fmt: skip
    """Score every `step`-th block from block `first` on, of units `[low, high)` of one row.

    With LANDMARK these are chunks, of which a unit of the table has several.

    Args:
        q: `[LANES, D]`, query heads of one row or of several, and rows of zeros.
        pair, g: int64 and int32 `[LANES]`, what a lane's results belong to.
        real: bool `[LANES]`, lanes with a query head.
        begin, end: int32 `[LANES]`, candidates of a lane.
        trust: whether units without a stamp have their fields by now.
        reach: float32 `[LANES]`, how far estimates go, 1 for ranking; read when COVERS.

    Returns:
        int32 `[BLOCK]`, 1 at places of a block where a unit without a stamp was met.
    """
    met = tl.zeros([BLOCK], tl.int32)
    for block in tl.range(first, tl.cdiv(high, BLOCK), step, num_stages=STAGES):
        unit = block * BLOCK + tl.arange(0, BLOCK)
        listed = (unit >= low) & (unit < high)
        PARTS: tl.constexpr = UNIT // CHUNK if FORMULA == LANDMARK else 1
        entry = tl.load(table + unit // PARTS, mask=listed, other=0)
        met = tl.where(entry < 0, 1, met)
        known = listed & ((entry >= 0) | trust) if FORMULA != EXACT else listed
        physical = (entry & UNIT_BITS).to(tl.int64) * PARTS + unit % PARTS
        logit = estimate(
            q, field, keys, physical, known, scale, spread, reach,
            stride_unit, stride_plane, stride_slot, FORMULA, UNIT, DIM, UPCAST, COVERS, ESTIMATE,
        )  # fmt: skip
        inside = (unit >= begin[:, None]) & (unit < end[:, None]) & listed
        logit = tl.where(inside, logit, float("-inf"))
        where = logits + (pair * GROUP + g)[:, None] * width + unit[None, :]
        tl.store(where, logit, mask=real[:, None] & inside)
        best = tl.max(logit, 1)
        total = tl.sum(share_of(logit, best[:, None]), 1)
        written = real & (block * BLOCK < end) & ((block + 1) * BLOCK > begin)
        part = parts + (pair * blocks + block) * 2 * GROUP + g
        tl.store(part, best, mask=written)
        tl.store(part + GROUP, total, mask=written)
    return met


@triton.jit
def fill_fields(
    field, misfits, keys, table, heads, low, high, first, step, stride_unit, stride_plane,
    stride_slot,
    FORMULA: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    """Write the fields of units without a stamp in the blocks that `score_blocks` walks."""
    PARTS: tl.constexpr = UNIT // CHUNK if FORMULA == LANDMARK else 1
    for block in range(first, tl.cdiv(high, BLOCK), step):
        for start in range(0, BLOCK, PENDING_BLOCK):
            unit = block * BLOCK + start + tl.arange(0, PENDING_BLOCK)
            listed = (unit >= low) & (unit < high)
            entry = tl.load(table + unit // PARTS, mask=listed, other=0)
            if tl.min(entry) < 0:
                physical = (entry & UNIT_BITS).to(tl.int64) * PARTS + unit % PARTS
                if FORMULA == LANDMARK:
                    summarise_landmarks(
                        field, misfits, keys, physical, entry < 0, heads, stride_slot, DIM
                    )
                elif FORMULA == OWN:
                    WRITE(
                        field, keys, physical, entry < 0, stride_unit, stride_plane, stride_slot,
                        UNIT, DIM,
                    )  # fmt: skip
                else:
                    summarise_units(
                        field, keys, physical, entry < 0, stride_unit, stride_plane, stride_slot,
                        FORMULA == MEAN_STD, UNIT, DIM,
                    )  # fmt: skip


@triton.jit
def walk(
    q, field, misfits, keys, table, logits, parts, pair, heads, g, real, begin, end, low, high,
    first, step, scale, spread, reach, width, blocks, stride_unit, stride_plane, stride_slot,
    FORMULA: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr, COVERS: tl.constexpr,
    ESTIMATE: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """`score_blocks`, and once more when units without a stamp have got their fields."""
    first += low // BLOCK
    trust, again = False, True
    while again:
        met = score_blocks(
            q, field, keys, table, logits, parts, pair, g, real, begin, end, low, high, first,
            step, trust, scale, spread, reach, width, blocks, stride_unit, stride_plane,
            stride_slot, FORMULA, GROUP, UNIT, DIM, BLOCK, STAGES, UPCAST, COVERS, ESTIMATE,
        )  # fmt: skip
        again = (tl.max(met) > 0) & (trust == 0) & (FORMULA != EXACT)
        if again:
            fill_fields(
                field, misfits, keys, table, heads, low, high, first, step, stride_unit,
                stride_plane, stride_slot, FORMULA, UNIT, DIM, BLOCK, WRITE,
            )  # fmt: skip
            tl.debug_barrier()  # what was stored is read by other threads, and stored again
            trust = True


@triton.jit
def load_lanes(
    q, row, g, real, stride_row, stride_group, DIM: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Queries `[LANES, padded DIM]`; lanes without a query head are 0."""
    d = tl.arange(0, padded(DIM))
    where = q + row[:, None] * stride_row + g[:, None] * stride_group + d[None, :]
    queries = tl.load(where, mask=real[:, None] & (d < DIM)[None, :], other=0.0)
    return queries.to(tl.float32) if UPCAST else queries


@triton.jit(do_not_specialize=["layer", "rows", "chunks", "blocks"])
def score_kernel(
    q,
    keys,
    min_max,
    mean_std,
    landmarks,
    misfits,
    own_planes,
    pending,
    pending_count,
    table,
    order,
    shared,
    formulas,
    begins,
    ends,
    dense_layers,
    goals,
    logits,
    parts,
    scale,
    spread,
    layer,
    rows,
    chunks,
    blocks,
    width,
    capacity,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_slot,
    stride_key_head,
    stride_unit,
    stride_field_head,
    stride_plane,
    stride_own_unit,
    stride_own_head,
    stride_own_plane,
    stride_table,
    HAS_MIN_MAX: tl.constexpr,
    HAS_MEAN_STD: tl.constexpr,
    HAS_EXACT: tl.constexpr,
    HAS_LANDMARK: tl.constexpr,
    HAS_OWN: tl.constexpr,
    ESTIMATE: tl.constexpr,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    COVERS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Score a share of the blocks of a group of rows, for one KV head, or summarise pending units.

    Args:
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`.
        min_max: `[units, H, 2, D]`, or anything when HAS_MIN_MAX is false; mean_std likewise.
        landmarks: `[chunks, H, 1, D]` in one piece, or anything when HAS_LANDMARK is false;
            misfits, `[chunks, H, 1, 1]`, likewise.
        own_planes: a method's own, with `ESTIMATE` and `WRITE` of its `planes.Planes`, or anything
            when HAS_OWN is false.
        pending: int32 `[capacity]`, units to summarise; pending_count: int32 `[1]`.
        table: int32 `[rows, stride_table]`, physical units; negative without a stamp.
        order: int32 `[rows]`, the row at each place; rows of ROWS places in turn stand together.
            Read when ROWS > 1, as `shared`.
        shared: int32 `[rows]`, by place: leading units that are those of its group's first row.
        formulas, begins, ends, dense_layers: int32 `[rows]`, by row.
        goals: float32 `[rows]`, above 0 where estimates are to tell shares; read when COVERS.
        logits: float32 `[rows, H, G, width]`, written for candidates alone.
        parts: float32 `[rows, H, blocks, 2, G]`, written for blocks with candidates.
        chunks: programs of a group of rows, a multiple of ROWS.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    group, chunk = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    keys += head * stride_key_head
    min_max += head * stride_field_head
    mean_std += head * stride_field_head
    landmarks += head * DIM
    misfits += head
    own_planes += head * stride_own_head
    if chunk >= chunks:
        groups = tl.num_programs(0)
        summarise_pending(
            keys, min_max, mean_std, landmarks, misfits, own_planes, heads, pending, pending_count,
            capacity, (chunk - chunks) * groups + group, (tl.num_programs(2) - chunks) * groups,
            stride_slot, stride_unit, stride_plane, stride_own_unit, stride_own_plane, HAS_MIN_MAX,
            HAS_MEAN_STD, HAS_LANDMARK, HAS_OWN, WRITE, UNIT, DIM,
        )  # fmt: skip
        return
    lane = tl.arange(0, padded(ROWS * padded(GROUP), 16))
    at, g = lane // padded(GROUP), lane % padded(GROUP)
    place = group * ROWS + at
    exists = (at < ROWS) & (place < rows)
    row = tl.where(exists, group, 0).to(tl.int64)
    if ROWS > 1:
        row = tl.load(order + place, mask=exists, other=0).to(tl.int64)
    begin = tl.load(begins + row, mask=exists, other=0)
    end = tl.load(ends + row, mask=exists, other=0)
    real = exists & (g < GROUP)
    pair = row * heads + head
    shares = exists
    if COVERS:
        shares = tl.load(goals + row, mask=exists, other=0.0) > 0
    own = chunk % ROWS
    mine = group.to(tl.int64)
    if ROWS > 1:
        mine = tl.load(order + tl.minimum(group * ROWS + own, rows - 1)).to(tl.int64)
    formula, lowest = tl.load(formulas + mine), tl.load(begins + mine)
    ranked = (formula >= MIN_MAX) & (formula <= OWN) & (layer >= tl.load(dense_layers + mine))
    ranked = ranked & (group * ROWS + own < rows)
    reach = 0  # units that the rows which stand together have in common, in whole blocks
    together = exists
    if ROWS > 1:
        how = tl.load(formulas + row, mask=exists, other=0)
        ranking = exists & (layer >= tl.load(dense_layers + row, mask=exists, other=0))
        ranking = ranking & (how <= OWN)
        leading = tl.max(tl.where(ranking & (how != EXACT), how, 0))
        together = ranking & (how == leading)
        alike = tl.load(shared + place, mask=together, other=2147483647)
        if (leading >= MIN_MAX) & (tl.sum((together & (g == 0)).to(tl.int32)) > 1):
            if HAS_LANDMARK:
                parts_of = tl.where(leading == LANDMARK, UNIT // CHUNK, 1)
                alike = tl.minimum(alike, 2147483647 // parts_of) * parts_of
            reach = tl.min(tl.minimum(alike, tl.max(tl.where(together, end, 0)))) // BLOCK * BLOCK
        joined = tl.max((together & (at == own)).to(tl.int32)) > 0
        lowest = tl.maximum(lowest, tl.where(joined, reach, 0))
    for part in tl.range(0 if ROWS > 1 else 1, 2):
        lanes, first, step = real & (at == own), chunk // ROWS, chunks // ROWS
        low, high = lowest, tl.load(ends + mine)
        high = tl.where(ranked, high, 0)
        lists = table + mine * stride_table
        kind = formula
        if ROWS > 1:  # noqa: SIM102
            if part == 0:
                lanes, first, step = real & together, chunk, chunks
                low = tl.min(tl.where(together, begin, 2147483647))
                high, kind = reach, leading
                lists = table + tl.load(order + group * ROWS).to(tl.int64) * stride_table
        if low < high:
            queries = load_lanes(
                q + head * stride_q_head, row, g, lanes, stride_q_row, stride_q_group, DIM, UPCAST
            )
            if HAS_MIN_MAX:  # noqa: SIM102
                if kind == MIN_MAX:
                    walk(
                        queries, min_max, misfits, keys, lists, logits, parts, pair, heads, g,
                        lanes, begin, end, low, high, first, step, scale, spread,
                        tl.where(shares, BOX_REACH, 1.0), width, blocks,
                        stride_unit, stride_plane, stride_slot,
                        MIN_MAX, GROUP, UNIT, DIM, BLOCK, STAGES, UPCAST, COVERS, None, None,
                    )  # fmt: skip
            if HAS_MEAN_STD:  # noqa: SIM102
                if kind == MEAN_STD:
                    walk(
                        queries, mean_std, misfits, keys, lists, logits, parts, pair, heads, g,
                        lanes, begin, end, low, high, first, step, scale, spread,
                        tl.where(shares, SPREAD_REACH, 1.0), width, blocks,
                        stride_unit, stride_plane, stride_slot,
                        MEAN_STD, GROUP, UNIT, DIM, BLOCK, STAGES, UPCAST, COVERS, None, None,
                    )  # fmt: skip
            if HAS_EXACT:  # noqa: SIM102
                if kind == EXACT:
                    walk(
                        queries, keys, misfits, keys, lists, logits, parts, pair, heads, g,
                        lanes, begin, end, low, high, first, step, scale, spread, 1.0, width,
                        blocks, stride_unit, stride_plane, stride_slot,
                        EXACT, GROUP, UNIT, DIM, BLOCK, 1, UPCAST, False, None, None,
                    )  # fmt: skip
            if HAS_LANDMARK:  # noqa: SIM102
                if kind == LANDMARK:
                    walk(
                        queries, landmarks, misfits, keys, lists, logits, parts, pair, heads, g,
                        lanes, begin, end, low, high, first, step, scale, spread, 1.0, width,
                        blocks, heads * DIM, DIM, stride_slot,
                        LANDMARK, GROUP, UNIT, DIM, BLOCK, MARK_STAGES, UPCAST, False, None, None,
                    )  # fmt: skip
            if HAS_OWN:  # noqa: SIM102
                if kind == OWN:
                    walk(
                        queries, own_planes, misfits, keys, lists, logits, parts, pair, heads, g,
                        lanes, begin, end, low, high, first, step, scale, spread, 1.0, width,
                        blocks, stride_own_unit, stride_own_plane, stride_slot,
                        OWN, GROUP, UNIT, DIM, BLOCK, OWN_STAGES, UPCAST, False, ESTIMATE, WRITE,
                    )  # fmt: skip
