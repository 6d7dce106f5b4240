"""Exact top-k of one row and KV head, and its page table, in one launch.

Scores become integers that sort like them; a radix descent of four 8-bit digits finds the k-th
largest; of those equal to it the lowest units are taken. So ties are deterministic and the table
comes out in ascending logical order. A row of up to CHUNK units is one program's, which keeps its
keys in registers. Of a longer one each program keeps the best of a chunk, as many as are wanted of
the whole row; the program that comes last chooses among those, so a context may have any length.

A row may choose in finer units than the table lists, chunks or single tokens. Its numbers are then
in these, and so are the entries that it gets.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import LARGEST, finer_units, padded, share_of, take_turn

NOTHING = tl.constexpr(spec.NOTHING)
POSITION = tl.constexpr(spec.POSITION)
CLUSTERS = tl.constexpr(spec.CLUSTERS)
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
def narrowed(key, active, prefix, count, STEP: tl.constexpr, histogram):
    """Add the keys of this digit to the histogram, those that begin with the digits chosen."""
    SHIFT: tl.constexpr = 24 - 8 * STEP
    if STEP > 0:
        active = active & ((key >> (SHIFT + 8)) == prefix)
    digit = ((key >> SHIFT) & 0xFF).to(tl.int32)
    return histogram + tl.histogram(digit, DIGITS, mask=active)


@triton.jit
def next_digit(histogram, prefix, count):
    """The digit in which the `count`-th largest key lies: (prefix, what is left to count)."""
    from_above = tl.cumsum(histogram, reverse=True)
    chosen = tl.sum((from_above >= count).to(tl.int32)) - 1
    count -= tl.sum(tl.where(tl.arange(0, DIGITS) > chosen, histogram, 0))
    return (prefix << 8) | chosen.to(tl.uint32), count


@triton.jit
def threshold_of(key, exists, count):
    """The `count`-th largest of keys in registers (count at least 1), and how many equal to it."""
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        histogram = narrowed(key, exists, prefix, count, step, histogram)
        prefix, count = next_digit(histogram, prefix, count)
    return prefix, count


@triton.jit
def threshold_in_memory(keys, total, count, CHUNK: tl.constexpr):
    """As `threshold_of`, of keys that other programs wrote: uint32 as int32, `[total]`."""
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        for first in range(0, total, CHUNK):
            place = first + tl.arange(0, CHUNK)
            key = load_keys(keys, place, total)
            histogram = narrowed(key, place < total, prefix, count, step, histogram)
        prefix, count = next_digit(histogram, prefix, count)
    return prefix, count


@triton.jit
def load_keys(keys, place, total):
    """Keys from the second-level cache, where every program sees them; 0 beyond the last."""
    bits = tl.load(keys + place, mask=place < total, other=0, cache_modifier=".cg")
    return bits.to(tl.uint32, bitcast=True)


@triton.jit
def normalisers(
    parts, begin, end, g, BLOCK: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr
):
    """Log-sum-exp of each query head over all candidates, from the parts of its blocks."""
    highest = tl.full(g.shape, float("-inf"), tl.float32)
    total = tl.zeros(g.shape, tl.float32)
    for first in range(begin // BLOCK, tl.cdiv(end, BLOCK), PARTS):
        block = first + tl.arange(0, PARTS)
        written = (block * BLOCK < end)[:, None] & (g < GROUP)[None, :]
        part = parts + block[:, None] * 2 * GROUP + g[None, :]
        best = tl.load(part, mask=written, other=float("-inf"))
        share = tl.load(part + GROUP, mask=written, other=0.0)
        higher = tl.maximum(highest, tl.max(best, 0))
        share = tl.where(written, share * share_of(best, higher[None, :]), 0.0)
        total = total * share_of(highest, higher) + tl.sum(share, 0)
        highest = higher
    return tl.where(g < GROUP, highest + tl.log(total), 0.0)


@triton.jit
def group_rank(
    logits, parts, unit, begin, end, width,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, MEAN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Log of the reduced softmax over the candidates, from logits `[G, width]`; else -inf."""
    inside = (unit >= begin) & (unit < end)
    g = tl.arange(0, padded(GROUP))
    there = (g < GROUP)[:, None] & inside[None, :]
    where = logits + g[:, None] * width + unit[None, :]
    share = tl.load(where, mask=there, other=float("-inf"))
    share -= normalisers(parts, begin, end, g, BLOCK, GROUP, PARTS)[:, None]
    rank = tl.max(share, 0)
    broken = tl.max((share != share).to(tl.int32), 0) > 0
    if MEAN:
        rank += tl.log(tl.sum(tl.where(there, share_of(share, rank[None, :]), 0.0), 0) / GROUP)
    rank = tl.where(broken, float("nan"), rank)
    return tl.where(inside, rank, float("-inf"))


@triton.jit
def kept(key, least, of_equals):
    """Which keys are kept, the lowest of equals first; and how many equals may follow."""
    equal = (key == least).to(tl.int32)
    keep = (key > least) | ((equal != 0) & (tl.cumsum(equal) <= of_equals))
    return keep, of_equals - tl.sum(equal)


@triton.jit
def store_table(
    unit, keep, placed, table, finer, physical, logical, scale, offset, ranked,
    LOGICAL: tl.constexpr,
):  # fmt: skip
    """Write kept units in ascending order behind `placed` others; gives the new number of them.

    An entry is `physical unit * scale + offset`. Logical units are written if `ranked`.
    """
    kept = keep.to(tl.int32)
    place = placed + tl.cumsum(kept) - 1
    entry = finer_units(table, unit, keep, finer) * scale + offset
    tl.store(physical + place, entry, mask=keep)
    if LOGICAL:
        tl.store(logical + place, unit, mask=keep & ranked)
    return placed + tl.sum(kept)


@triton.jit
def store_best(key, unit, exists, count, keys, units):
    """Write the `count` best of a chunk in ascending order, or all of them: keys, and which."""
    keep = exists
    if tl.sum(exists.to(tl.int32)) > count:
        least, of_equals = threshold_of(key, exists, count)
        keep, of_equals = kept(key, least, of_equals)
    place = tl.cumsum(keep.to(tl.int32)) - 1
    tl.store(keys + place, key.to(tl.int32, bitcast=True), mask=keep)
    tl.store(units + place, unit, mask=keep)


@triton.jit
def store_chosen(
    keys, units, total, count, table, finer, physical, logical, scale, offset,
    CHUNK: tl.constexpr, LOGICAL: tl.constexpr,
):  # fmt: skip
    """Choose among the best of all chunks, `[total]` of both, and write the table."""
    if total <= CHUNK:
        place = tl.arange(0, CHUNK)
        key = load_keys(keys, place, total)
        unit = tl.load(units + place, mask=place < total, other=0, cache_modifier=".cg")
        least, of_equals = threshold_of(key, place < total, count)
        keep, of_equals = kept(key, least, of_equals)
        store_table(
            unit, keep, 0, table, finer, physical, logical, scale, offset, True, LOGICAL
        )  # fmt: skip
    else:
        least, of_equals = threshold_in_memory(keys, total, count, CHUNK)
        placed = 0
        for first in range(0, total, CHUNK):
            place = first + tl.arange(0, CHUNK)
            unit = tl.load(units + place, mask=place < total, other=0, cache_modifier=".cg")
            keep, of_equals = kept(load_keys(keys, place, total), least, of_equals)
            placed = store_table(
                unit, keep, placed, table, finer, physical, logical, scale, offset, True, LOGICAL
            )


@triton.jit(do_not_specialize=["layer", "blocks"])
def select_kernel(
    logits,
    parts,
    ranks,
    table,
    formulas,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    finers,
    physical,
    logical,
    offsets,
    best,
    tickets,
    goals,
    chosen,
    layer,
    blocks,
    width,
    ranked,
    widest,
    stride_table,
    entry_scale,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    MEAN: tl.constexpr,
    REDUCED: tl.constexpr,
    COPY_DENSE: tl.constexpr,
    LOGICAL: tl.constexpr,
    FINER: tl.constexpr,
    CODED: tl.constexpr,
    COVERS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Keep sinks, window and the best candidates of one row and KV head. Grid `[chunks, H, rows]`.

    Args:
        logits: float32 `[rows, H, G, width]` with parts as `score_kernel` leaves them. When REDUCED
            float32 `[rows, H, width]`, final scores, and parts is not read.
        ranks: float32 `[rows, H, ranked]`, final scores by formulas from CLUSTERS on, when CODED.
        table: int32 `[rows, stride_table]`, see `begin_kernel`.
        formulas, begins, ends, num_units, counts, dense_layers: int32 `[rows]`.
        finers: int32 `[rows]`, units of the table have 2^finer of the row's; read when FINER.
        physical: int32, entries `physical unit * entry_scale + head` (or the unit itself when
            entry_scale is 1), each pair's run beginning at `offsets[row, head]`.
        logical: int32 `[rows, H, widest]`, written when LOGICAL, but not for rows that are dense.
        best: int32 `[rows, H, 2, chunks * CHUNK]`, keys and units that chunks have kept; anything
            where there is one chunk.
        tickets: int32 `[rows, H]`, zero before and after.
        goals, chosen: see `cover_kernel`; read when COVERS. What is chosen counts then, and rows
            with a goal have final scores.
        CHUNK: scores of one program.
        PARTS: blocks of scores whose sums are added at a time.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    chunk, row = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    formula = tl.load(formulas + row)
    total, count = tl.load(num_units + row), tl.load(counts + row)
    leaves_ranks = formula >= CLUSTERS
    if COVERS:
        count = tl.load(chosen + pair)
        leaves_ranks = leaves_ranks | (tl.load(goals + row) > 0)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    dense = (formula == NOTHING) | (layer < tl.load(dense_layers + row))
    chunks = tl.cdiv(total, CHUNK)
    if (chunk >= chunks) | ((chunk > 0) & (dense | (formula == POSITION))):
        return
    table += row.to(tl.int64) * stride_table
    physical += tl.load(offsets + pair)
    logical += pair * widest
    offset = tl.where(entry_scale == 1, 0, head)
    finer = tl.load(finers + row) if FINER else 0
    if dense | (formula == POSITION):
        newest = tl.where(dense, begin, total - (count - begin))
        if COPY_DENSE | (formula == POSITION) & (dense == 0):
            placed = 0
            for first in range(0, total, CHUNK):
                unit = first + tl.arange(0, CHUNK)
                placed = store_table(
                    unit, (unit < total) & ((unit < begin) | (unit >= newest)), placed, table,
                    finer, physical, logical, entry_scale, offset, dense == 0, LOGICAL,
                )  # fmt: skip
        return
    logits += pair * GROUP * width
    unit = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = (unit >= begin) & (unit < end)
    rank = tl.full([CHUNK], float("-inf"), tl.float32)
    if REDUCED:
        rank = tl.load(logits + unit, mask=inside, other=float("-inf"))
    elif CODED:
        if leaves_ranks:
            rank = tl.load(ranks + pair * ranked + unit, mask=inside, other=float("-inf"))
        else:
            rank = group_rank(
                logits, parts + pair * blocks * 2 * GROUP, unit, begin, end, width,
                BLOCK, GROUP, MEAN, PARTS,
            )  # fmt: skip
    else:
        rank = group_rank(
            logits, parts + pair * blocks * 2 * GROUP, unit, begin, end, width,
            BLOCK, GROUP, MEAN, PARTS,
        )  # fmt: skip
    key = tl.where(inside, sortable(rank), ALWAYS)
    key = tl.where(unit < total, key, 0).to(tl.uint32)
    if chunks == 1:
        least, of_equals = threshold_of(key, unit < total, count)
        keep, of_equals = kept(key, least, of_equals)
        store_table(
            unit, keep, 0, table, finer, physical, logical, entry_scale, offset, True, LOGICAL
        )  # fmt: skip
        return
    room = tl.num_programs(0) * CHUNK
    best += pair * 2 * room
    each = tl.minimum(count, CHUNK)
    store_best(key, unit, unit < total, count, best + chunk * each, best + room + chunk * each)
    tl.debug_barrier()
    if tl.atomic_add(tickets + pair, 1, sem="acq_rel", scope="gpu") != chunks - 1:
        return
    tl.store(tickets + pair, 0)
    last = tl.minimum(total - (chunks - 1) * CHUNK, count)
    store_chosen(
        best, best + room, (chunks - 1) * each + last, count, table, finer, physical, logical,
        entry_scale, offset, CHUNK, LOGICAL,
    )  # fmt: skip
