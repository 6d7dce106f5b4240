"""Exact top-k of one row and KV head, and its page table, in one launch.

The table comes out in ascending logical order, and of equal scores (`radix`) the lowest units are
in it. A row of up to CHUNK units is one program's, which keeps its keys in registers. Of a longer
one each program keeps the best of a chunk, as many as are wanted of the whole row; the program that
comes last chooses among those, so a context may have any length. Where that would be too much for
one program, as where budgets count single tokens, two launches more choose from longer rows
(`narrow`), and this one leaves them keys.

A row may choose in finer units than the table lists, chunks or single tokens. Its numbers are then
in these, and so are the entries that it gets.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import comes_last, finer_units, padded, share_of, take_turn
from .radix import (
    BINS,
    bin_of,
    kept,
    load_keys,
    sortable,
    threshold_in_memory,
    threshold_of,
)

NOTHING = tl.constexpr(spec.NOTHING)
POSITION = tl.constexpr(spec.POSITION)
CLUSTERS = tl.constexpr(spec.CLUSTERS)
HOLDS = tl.constexpr(spec.HOLDS)
ALWAYS = tl.constexpr(0xFFFFFFFF)


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
def reduced_share(share, there, mean, GROUP: tl.constexpr):
    """Log of the softmax of a group reduced to one: `[padded GROUP, n]` -> `[n]`.

    Args:
        share: log of the softmax; anything but where `there`.
        there: bool, of the same shape.
        mean: reduction by mean, else by maximum.
    """
    share = tl.where(there, share, float("-inf"))
    rank = tl.max(share, 0)
    # Counted in floats: LLVM joins booleans of one thread in memory.
    broken = tl.sum(tl.where(share != share, 1.0, 0.0), 0) > 0
    if mean:
        rank += tl.log(tl.sum(tl.where(there, share_of(share, rank[None, :]), 0.0), 0) / GROUP)
    return tl.where(broken, float("nan"), rank)


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
    return tl.where(inside, reduced_share(share, there, MEAN, GROUP), float("-inf"))


@triton.jit
def store_table(
    unit, key, keep, placed, table, finer, physical, logical, drawn, scale, offset, holds,
    LOGICAL: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Write kept units in ascending order behind `placed` others; gives the new number of them.

    An entry is `physical unit * scale + offset`. With HELD, a row that `holds` what it chooses gets
    units in place of entries, and their keys in `drawn`.
    """
    kept = keep.to(tl.int32)
    place = placed + tl.cumsum(kept) - 1
    entry = finer_units(table, unit, keep, finer) * scale + offset
    if HELD:
        entry = tl.where(holds, unit, entry)
        tl.store(drawn + place, key.to(tl.int32, bitcast=True), mask=keep & holds)
    tl.store(physical + place, entry, mask=keep)
    if LOGICAL:
        tl.store(logical + place, unit, mask=keep)
    return placed + tl.sum(kept)


@triton.jit
def store_marks(read, unit, keep, exists, MARKED: tl.constexpr):
    """Say of units whether they are kept, if anybody is to know."""
    if MARKED:
        tl.store(read + unit, keep.to(tl.uint8), mask=exists)


@triton.jit
def mark_unread(read, first, last, CHUNK: tl.constexpr, MARKED: tl.constexpr):
    """As `store_marks`, of all units `[first, last)`, which are not kept."""
    for start in range(first, last, CHUNK):
        unit = start + tl.arange(0, CHUNK)
        store_marks(read, unit, unit < 0, unit < last, MARKED)


@triton.jit
def store_run(
    first, last, placed, table, finer, physical, logical, read, scale, offset, ranked,
    CHUNK: tl.constexpr, LOGICAL: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """As `store_table`, of all units `[first, last)`, and mark them; logical ones are written if
    `ranked`."""
    for start in range(first, last, CHUNK):
        unit = start + tl.arange(0, CHUNK)
        place = placed + unit - first
        entry = finer_units(table, unit, unit < last, finer) * scale + offset
        store_marks(read, unit, unit < last, unit < last, MARKED)
        tl.store(physical + place, entry, mask=unit < last)
        if LOGICAL:
            tl.store(logical + place, unit, mask=(unit < last) & ranked)
    return placed + tl.maximum(last - first, 0)


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
def store_counted(key, unit, exists, keys, bins):
    """Leave the keys of a chunk, and add them to what is counted of the row by bin: `narrow`."""
    tl.store(keys + unit, key.to(tl.int32, bitcast=True), mask=exists)
    found = tl.histogram(bin_of(key), BINS, mask=exists)
    tl.atomic_add(bins + tl.arange(0, BINS), found, mask=found > 0, sem="relaxed")


@triton.jit
def store_chosen(
    keys, units, total, count, table, finer, physical, logical, read, drawn, scale, offset, holds,
    CHUNK: tl.constexpr, LOGICAL: tl.constexpr, MARKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Choose among the best of all chunks, `[total]` of both, write the table, and mark them."""
    if total <= CHUNK:
        place = tl.arange(0, CHUNK)
        key = load_keys(keys, place, total)
        unit = tl.load(units + place, mask=place < total, other=0, cache_modifier=".cg")
        least, of_equals = threshold_of(key, place < total, count)
        keep, of_equals = kept(key, least, of_equals)
        store_marks(read, unit, keep, keep, MARKED)
        store_table(
            unit, key, keep, 0, table, finer, physical, logical, drawn, scale, offset, holds,
            LOGICAL, HELD,
        )  # fmt: skip
    else:
        least, of_equals = threshold_in_memory(keys, total, count, CHUNK)
        placed = 0
        for first in range(0, total, CHUNK):
            place = first + tl.arange(0, CHUNK)
            unit = tl.load(units + place, mask=place < total, other=0, cache_modifier=".cg")
            key = load_keys(keys, place, total)
            keep, of_equals = kept(key, least, of_equals)
            store_marks(read, unit, keep, keep, MARKED)
            placed = store_table(
                unit, key, keep, placed, table, finer, physical, logical, drawn, scale, offset,
                holds, LOGICAL, HELD,
            )  # fmt: skip


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
    bins,
    read,
    tickets,
    goals,
    chosen,
    does,
    drawn,
    layer,
    blocks,
    width,
    ranked,
    widest,
    stride_table,
    stride_read,
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
    COUNTED: tl.constexpr,
    MARKED: tl.constexpr,
    COVERS: tl.constexpr,
    HELD: tl.constexpr,
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
            where there is one chunk. When COUNTED, all keys by unit, and nothing behind them.
        bins: int32 `[rows, H, BINS]`, zero before; keys of longer rows are counted in them when
            COUNTED, else anything.
        read: uint8 `[rows, H, stride_read]`, whether a unit of a row that is not dense is kept;
            written when MARKED, but not of rows that are left to `narrow_kernel`.
        tickets: int32 `[rows, H]`, zero before and after.
        goals, chosen: see `cover.count_kernel`; read when COVERS. What is chosen counts then, and
            rows with a goal have final scores.
        CHUNK: scores of one program.
        PARTS: blocks of scores whose sums are added at a time.
        does: int32 `[rows]`, see `plan_held_kernel`; read when HELD. A row that HOLDS gets logical
            units in place of entries, and their keys in `drawn`, int32 `[rows, H, widest]`.
        COUNTED: longer rows are left to `narrow_kernel`.
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
    read += pair * stride_read
    offset = tl.where(entry_scale == 1, 0, head)
    finer = tl.load(finers + row) if FINER else 0
    holds = tl.load(does + row) == HOLDS if HELD else False
    drawn += pair * widest
    if dense | (formula == POSITION):
        newest = tl.where(dense, begin, total - (count - begin))
        if COPY_DENSE | (formula == POSITION) & (dense == 0):
            lists = (table, finer, physical, logical, read, entry_scale, offset, dense == 0)
            placed = store_run(0, begin, 0, *lists, CHUNK, LOGICAL, MARKED)
            mark_unread(read, begin, newest, CHUNK, MARKED)
            store_run(newest, total, placed, *lists, CHUNK, LOGICAL, MARKED)
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
        store_marks(read, unit, keep, unit < total, MARKED)
        store_table(
            unit, key, keep, 0, table, finer, physical, logical, drawn, entry_scale, offset, holds,
            LOGICAL, HELD,
        )  # fmt: skip
        return
    room = tl.num_programs(0) * CHUNK
    best += pair * 2 * room
    if COUNTED:
        store_counted(key, unit, unit < total, best, bins + pair * BINS)
    else:
        each = tl.minimum(count, CHUNK)
        store_marks(read, unit, unit < 0, unit < total, MARKED)
        store_best(key, unit, unit < total, count, best + chunk * each, best + room + chunk * each)
        if comes_last(tickets + pair, chunks):
            last = tl.minimum(total - (chunks - 1) * CHUNK, count)
            store_chosen(
                best, best + room, (chunks - 1) * each + last, count, table, finer, physical,
                logical, read, drawn, entry_scale, offset, holds, CHUNK, LOGICAL, MARKED, HELD,
            )  # fmt: skip
