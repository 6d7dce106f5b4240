"""Scores of candidate units, and in the same launch the summaries of units that just filled.

Grid `[rows, H, blocks of units + workers]`: rows run fastest, so requests on one prefix read the
same metadata at the same time and share it through the L2 cache. What a program leaves behind is
`logits[row, head, g, u]`, the scaled estimate per query head, and per block of units the maximum
and the sum of exponentials that the softmax over all candidates needs; `select` joins them.

A unit without a stamp is never scored from its fields: its planes are made from its keys on the
spot. So a page that was filled unseen is right in its first step, and the workers, which write the
fields of pending units, need no barrier before the scoring programs.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import (
    PENDING_BLOCK,
    key_rows,
    load_group,
    load_planes,
    mean_std_of,
    min_max_of,
    padded,
    share_of,
    summarise_units,
)

MIN_MAX = tl.constexpr(spec.MIN_MAX)
MEAN_STD = tl.constexpr(spec.MEAN_STD)
EXACT = tl.constexpr(spec.EXACT)


@triton.jit
def upper_bound(q, low, high, UPCAST: tl.constexpr):
    """Quest's bound `[G, units]`: sum over channels of max(q low, q high)."""
    positive = tl.where(q > 0, q, 0.0).to(q.dtype)
    negative = tl.where(q < 0, q, 0.0).to(q.dtype)
    if UPCAST:
        low, high = low.to(tl.float32), high.to(tl.float32)
    bound = tl.dot(positive, tl.trans(high), input_precision="ieee")
    return tl.dot(negative, tl.trans(low), acc=bound, input_precision="ieee")


@triton.jit
def expected_maximum(q, mean, std, spread, UPCAST: tl.constexpr):
    """Estimate `[G, units]`: mean + spread standard deviations.

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
def planes_of(
    field, keys, units, inside, sealed, stride_unit, stride_plane, stride_slot,
    FORMULA: tl.constexpr, CHECK: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Two planes of a block of units: from their fields, or from their keys if one has no stamp."""
    known = 1
    if CHECK:
        known = tl.min(tl.load(sealed + units, mask=inside, other=1).to(tl.int32))
    if known != 0:
        a, b = load_planes(field, units, inside, stride_unit, stride_plane, DIM)
    elif FORMULA == MIN_MAX:
        a, b = min_max_of(keys, units, inside, stride_slot, UNIT, DIM)
    else:
        a, b = mean_std_of(keys, units, inside, stride_slot, UNIT, DIM)
    return a, b


@triton.jit(do_not_specialize=["layer"])
def score_kernel(
    q,
    keys,
    min_max,
    mean_std,
    sealed,
    pending,
    pending_count,
    table,
    formulas,
    begins,
    ends,
    dense_layers,
    logits,
    parts,
    scale,
    spread,
    layer,
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
    stride_table,
    BLOCKS: tl.constexpr,
    HAS_MIN_MAX: tl.constexpr,
    HAS_MEAN_STD: tl.constexpr,
    HAS_EXACT: tl.constexpr,
    IN_STEP: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Score one block of units of one row and KV head, or summarise pending units.

    Args:
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`.
        min_max: `[units, H, 2, D]`, or anything when HAS_MIN_MAX is false; mean_std likewise.
        sealed: uint8 `[units]`, read when IN_STEP.
        pending: int32 `[capacity]`, units to summarise; pending_count: int32 `[1]`.
        table: int32 `[rows, width]`, physical units.
        formulas, begins, ends, dense_layers: int32 `[rows]`.
        logits: float32 `[rows, H, G, width]`, written for candidates alone.
        parts: float32 `[rows, H, BLOCKS, 2, G]`, written for blocks with candidates.
    """
    row, block = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    keys += head * stride_key_head
    min_max += head * stride_field_head
    mean_std += head * stride_field_head
    if block >= BLOCKS:
        worker = (block - BLOCKS) * tl.num_programs(0) + row
        workers = (tl.num_programs(2) - BLOCKS) * tl.num_programs(0)
        summarise_pending(
            keys, min_max, mean_std, pending, pending_count, capacity, worker, workers,
            stride_slot, stride_unit, stride_plane, HAS_MIN_MAX, HAS_MEAN_STD, UNIT, DIM,
        )  # fmt: skip
        return
    formula = tl.load(formulas + row)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    first = block * BLOCK
    if (formula < MIN_MAX) | (first >= end) | (first + BLOCK <= begin):
        return
    if layer < tl.load(dense_layers + row):
        return
    unit = first + tl.arange(0, BLOCK)
    inside = (unit >= begin) & (unit < end)
    units = tl.load(table + row * stride_table + unit, mask=inside, other=0).to(tl.int64)
    q += row.to(tl.int64) * stride_q_row + head * stride_q_head
    group = load_group(q, stride_q_group, GROUP, DIM, UPCAST)
    logit = tl.zeros([padded(GROUP, 16), BLOCK], tl.float32)
    if HAS_MIN_MAX:  # noqa: SIM102 - decided when compiled, the inner one when run
        if formula == MIN_MAX:
            low, high = planes_of(
                min_max, keys, units, inside, sealed, stride_unit, stride_plane, stride_slot,
                MIN_MAX, IN_STEP, UNIT, DIM,
            )  # fmt: skip
            logit = scale * upper_bound(group, low, high, UPCAST)
    if HAS_MEAN_STD:  # noqa: SIM102
        if formula == MEAN_STD:
            mean, std = planes_of(
                mean_std, keys, units, inside, sealed, stride_unit, stride_plane, stride_slot,
                MEAN_STD, IN_STEP, UNIT, DIM,
            )  # fmt: skip
            logit = scale * expected_maximum(group, mean, std, spread, UPCAST)
    if HAS_EXACT:  # noqa: SIM102
        if formula == EXACT:
            logit = exact_share(group, keys, units, inside, stride_slot, scale, UNIT, DIM, UPCAST)
    logit = tl.where(inside[None, :], logit, float("-inf"))
    g = tl.arange(0, padded(GROUP, 16))
    pair = row.to(tl.int64) * heads + head
    where = logits + (pair * GROUP + g[:, None]) * width + unit[None, :]
    tl.store(where, logit, mask=(g < GROUP)[:, None] & inside[None, :])
    best = tl.max(logit, 1)
    total = tl.sum(share_of(logit, best[:, None]), 1)
    part = parts + (pair * BLOCKS + block) * 2 * GROUP + g
    tl.store(part, best, mask=g < GROUP)
    tl.store(part + GROUP, total, mask=g < GROUP)


@triton.jit
def summarise_pending(
    keys, min_max, mean_std, pending, pending_count, capacity, worker, workers,
    stride_slot, stride_unit, stride_plane,
    HAS_MIN_MAX: tl.constexpr, HAS_MEAN_STD: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the fields of this worker's share of the pending units, for one KV head."""
    count = tl.minimum(tl.load(pending_count), capacity)
    for first in range(worker * PENDING_BLOCK, count, workers * PENDING_BLOCK):
        i = first + tl.arange(0, PENDING_BLOCK)
        inside = i < count
        units = tl.load(pending + i, mask=inside, other=0).to(tl.int64)
        if HAS_MIN_MAX:
            summarise_units(
                min_max, keys, units, inside, stride_unit, stride_plane, stride_slot,
                False, UNIT, DIM,
            )  # fmt: skip
        if HAS_MEAN_STD:
            summarise_units(
                mean_std, keys, units, inside, stride_unit, stride_plane, stride_slot,
                True, UNIT, DIM,
            )  # fmt: skip


@triton.jit
def summarise_kernel(
    keys, min_max, mean_std, pending, pending_count, capacity,
    stride_slot, stride_key_head, stride_unit, stride_field_head, stride_plane,
    HAS_MIN_MAX: tl.constexpr, HAS_MEAN_STD: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the fields of all pending units; grid `[workers, H]`."""
    worker, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    summarise_pending(
        keys + head * stride_key_head,
        min_max + head * stride_field_head,
        mean_std + head * stride_field_head,
        pending, pending_count, capacity, worker, tl.num_programs(0),
        stride_slot, stride_unit, stride_plane, HAS_MIN_MAX, HAS_MEAN_STD, UNIT, DIM,
    )  # fmt: skip
