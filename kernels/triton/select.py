"""Exact top-k of one row and KV head in one program, and its page table in the same launch.

Scores become integers that sort like them; a radix descent of four 8-bit digits finds the k-th
largest; of those equal to it the lowest units are taken. So ties are deterministic and the table
comes out in ascending logical order. Scores are walked in chunks, so a context may have any length
and a short one costs little.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import LARGEST, high_of, share_of

NOTHING = tl.constexpr(spec.NOTHING)
POSITION = tl.constexpr(spec.POSITION)
ALWAYS = tl.constexpr(0xFFFFFFFF)
DIGITS = tl.constexpr(256)


@triton.jit
def sortable(score):
    """Float32 -> uint32 of the same order; both zeros are one, what is not a number is large."""
    score = tl.where((score != score) | (score > LARGEST), LARGEST, score)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    flipped = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return flipped.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def key_of(scores, unit, begin, end, total):
    """Sort key of units: sinks and window above all, what does not exist below all."""
    inside = (unit >= begin) & (unit < end)
    score = tl.load(scores + unit, mask=inside, other=0.0)
    key = tl.where(inside, sortable(score), ALWAYS)
    return tl.where(unit < total, key, 0).to(tl.uint32)


@triton.jit
def threshold_of(scores, begin, end, total, count, CHUNK: tl.constexpr):
    """The `count`-th largest key (count at least 1), and how many equal to it are to be taken."""
    digit_values = tl.arange(0, DIGITS)
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        histogram = tl.zeros([DIGITS], tl.int32)
        for first in range(0, total, CHUNK):
            unit = first + tl.arange(0, CHUNK)
            key = key_of(scores, unit, begin, end, total)
            active = unit < total
            if step > 0:
                active = active & ((key >> (shift + 8)) == prefix)
            digit = ((key >> shift) & 0xFF).to(tl.int32)
            histogram += tl.histogram(digit, DIGITS, mask=active)
        from_above = tl.cumsum(histogram, reverse=True)
        chosen = tl.sum((from_above >= count).to(tl.int32)) - 1
        count -= tl.sum(tl.where(digit_values > chosen, histogram, 0))
        prefix = (prefix << 8) | chosen.to(tl.uint32)
    return prefix, count


@triton.jit
def group_rank(
    logits, parts, unit, begin, end, width,
    BLOCKS: tl.constexpr, BLOCKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Log of the reduced softmax over the candidates, from logits `[G, width]`; else -inf."""
    inside = (unit >= begin) & (unit < end)
    block = tl.arange(0, BLOCKS_PADDED)
    written = (block < BLOCKS) & (block * BLOCK < end) & ((block + 1) * BLOCK > begin)
    rank = tl.full(unit.shape, float("-inf"), tl.float32)
    for g in tl.static_range(GROUP):
        part = parts + block * 2 * GROUP + g
        best = tl.load(part, mask=written, other=float("-inf"))
        highest = tl.max(best)
        total = tl.load(part + GROUP, mask=written, other=0.0)
        total = tl.sum(tl.where(written, total * share_of(best, highest), 0.0))
        share = tl.load(logits + g * width + unit, mask=inside, other=float("-inf"))
        share = share - (highest + tl.log(total))
        if MEAN:
            top = high_of(rank, share)
            rank = top + tl.log(share_of(rank, top) + share_of(share, top))
        else:
            rank = high_of(rank, share)
    if MEAN:
        rank -= tl.log(tl.full([], GROUP, tl.float32))
    return tl.where(inside, rank, float("-inf"))


@triton.jit
def store_table(
    unit, keep, placed, table, physical, logical, scale, offset, LOGICAL: tl.constexpr
):  # fmt: skip
    """Write kept units in ascending order behind `placed` others; gives the new number of them.

    An entry is `physical unit * scale + offset`.
    """
    kept = keep.to(tl.int32)
    place = placed + tl.cumsum(kept) - 1
    entry = tl.load(table + unit, mask=keep, other=0) * scale + offset
    tl.store(physical + place, entry, mask=keep)
    if LOGICAL:
        tl.store(logical + place, unit, mask=keep)
    return placed + tl.sum(kept)


@triton.jit(do_not_specialize=["layer"])
def select_kernel(
    logits,
    parts,
    table,
    formulas,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    physical,
    logical,
    offsets,
    layer,
    width,
    widest,
    stride_table,
    entry_scale,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    MEAN: tl.constexpr,
    REDUCED: tl.constexpr,
    COPY_DENSE: tl.constexpr,
    LOGICAL: tl.constexpr,
):
    """Keep sinks, window and the best candidates of one row and KV head. Grid `[rows, H]`.

    Args:
        logits: float32 `[rows, H, G, width]` with parts as `score_kernel` leaves them; the first
            query head's place is overwritten. When REDUCED, float32 `[rows, H, width]`, final
            scores, and parts is not read.
        table: int32 `[rows, width]`.
        formulas, begins, ends, num_units, counts, dense_layers: int32 `[rows]`.
        physical: int32, entries `physical unit * entry_scale + head` (or the unit itself when
            entry_scale is 1), each pair's run beginning at `offsets[row, head]`.
        logical: int32 `[rows, H, widest]`, written when LOGICAL, but not for rows that are dense.
        CHUNK: scores walked at a time.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    formula = tl.load(formulas + row)
    total, count = tl.load(num_units + row), tl.load(counts + row)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    table += row.to(tl.int64) * stride_table
    physical += tl.load(offsets + pair)
    logical += pair * widest
    offset = tl.where(entry_scale == 1, 0, head)
    placed = 0
    if (formula == NOTHING) | (layer < tl.load(dense_layers + row)):
        if COPY_DENSE:
            for first in range(0, total, CHUNK):
                unit = first + tl.arange(0, CHUNK)
                placed = store_table(
                    unit, unit < total, placed, table, physical, logical, entry_scale, offset,
                    False,
                )  # fmt: skip
        return
    if formula == POSITION:
        newest = total - (count - begin)
        for first in range(0, total, CHUNK):
            unit = first + tl.arange(0, CHUNK)
            keep = (unit < total) & ((unit < begin) | (unit >= newest))
            placed = store_table(
                unit, keep, placed, table, physical, logical, entry_scale, offset, LOGICAL
            )
        return
    logits += pair * GROUP * width
    if not REDUCED:
        parts += pair * BLOCKS * 2 * GROUP
        for first in range(begin, end, CHUNK):
            unit = first + tl.arange(0, CHUNK)
            rank = group_rank(
                logits, parts, unit, begin, end, width,
                BLOCKS, BLOCKS_PADDED, BLOCK, GROUP, MEAN,
            )  # fmt: skip
            tl.store(logits + unit, rank, mask=unit < end)
        tl.debug_barrier()
    least, of_equals = threshold_of(logits, begin, end, total, count, CHUNK)
    for first in range(0, total, CHUNK):
        unit = first + tl.arange(0, CHUNK)
        key = key_of(logits, unit, begin, end, total)
        equal = (key == least).to(tl.int32)
        keep = (key > least) | ((equal != 0) & (tl.cumsum(equal) <= of_equals))
        of_equals -= tl.sum(equal)
        placed = store_table(
            unit, keep, placed, table, physical, logical, entry_scale, offset, LOGICAL
        )
