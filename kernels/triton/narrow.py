"""Selection from rows of more scores than one program holds, where many of them are kept.

    select   keys of all units, and how many lie in each bin          a program per chunk
    narrow   the bin in which the last that is kept lies; of the keys in it the lowest that is kept,
             and where in the list the entries of each chunk begin
    place    the entries

The second and the third launch walk chunks in parallel, and no chunk is looked at twice in one: the
program of `narrow` that comes last sees the keys of one bin alone, a few hundred of 131,072 scores
as they are found. Whatever they are, equal ones too, the selection is the exact one of `select`;
only the last program takes longer the more keys lie in that bin.

Grid `[rows, H, programs]`, sized by the GPU. What is written lies at places fixed in the sequence,
whoever writes it, but for the list of keys in a bin, whose order does not matter. A program asks
for the keys of its next chunk while it looks at one, and for those of the first before it knows the
plan.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import comes_last, take_turn
from .radix import (
    BINS,
    DIGITS,
    bin_of,
    crossing,
    kept,
    narrowed,
    next_digit,
    threshold_of,
)
from .select import store_marks, store_table

NOTHING = tl.constexpr(spec.NOTHING)
POSITION = tl.constexpr(spec.POSITION)
HOLDS = tl.constexpr(spec.HOLDS)


@triton.jit
def chunks_of(formulas, num_units, dense_layers, row, layer, CHUNK: tl.constexpr):
    """Chunks of a row that is chosen from here; 0 where `select` has done all of it."""
    formula, total = tl.load(formulas + row), tl.load(num_units + row)
    dense = (formula == NOTHING) | (layer < tl.load(dense_layers + row))
    alone = dense | (formula == POSITION) | (total <= CHUNK)
    return tl.where(alone, 0, tl.cdiv(total, CHUNK))


@triton.jit
def load_chunk(keys, chunk, chunks, CHUNK: tl.constexpr):
    """Units of a whole chunk, and their keys: those beyond the row's last are anything."""
    unit = chunk * CHUNK + tl.arange(0, CHUNK)
    bits = tl.load(keys + unit, mask=chunk < chunks, other=0, cache_modifier=".cg")
    return unit, bits.to(tl.uint32, bitcast=True)


@triton.jit
def load_listed(keys, listed, place, total):
    """Units of a list, and their keys; 0 beyond the last."""
    unit = tl.load(listed + place, mask=place < total, other=0, cache_modifier=".cg")
    bits = tl.load(keys + unit, mask=place < total, other=0)
    return unit, bits.to(tl.uint32, bitcast=True)


@triton.jit
def threshold_listed(keys, listed, total, count, CHUNK: tl.constexpr):
    """As `threshold_of`, of the keys of a list of any length."""
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        for first in range(0, total, CHUNK):
            place = first + tl.arange(0, CHUNK)
            _, key = load_listed(keys, listed, place, total)
            histogram = narrowed(key, place < total, prefix, count, step, histogram)
        prefix, count = next_digit(histogram, prefix, count)
    return prefix, count


@triton.jit
def by_chunk(unit, counted, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """How many of those counted lie in each chunk: int32 `[CHUNKS]`."""
    return tl.histogram(unit // CHUNK, CHUNKS, mask=counted)


@triton.jit
def settle(
    keys, listed, total, count, chunks, betters, firsts, equals,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Of `total` keys in one bin the lowest that is kept; and what each chunk keeps.

    Writes the place of each chunk's first entry, and how many equals of the lowest it may keep.
    """
    chunk = tl.arange(0, CHUNKS)
    better = tl.load(betters + chunk, mask=chunk < chunks, other=0, cache_modifier=".cg")
    if total <= CHUNK:
        place = tl.arange(0, CHUNK)
        unit, key = load_listed(keys, listed, place, total)
        least, of_equals = threshold_of(key, place < total, count)
        greater = by_chunk(unit, (place < total) & (key > least), CHUNK, CHUNKS)
        equal = by_chunk(unit, (place < total) & (key == least), CHUNK, CHUNKS)
    else:
        least, of_equals = threshold_listed(keys, listed, total, count, CHUNK)
        greater, equal = tl.zeros([CHUNKS], tl.int32), tl.zeros([CHUNKS], tl.int32)
        for first in range(0, total, CHUNK):
            place = first + tl.arange(0, CHUNK)
            unit, key = load_listed(keys, listed, place, total)
            greater += by_chunk(unit, (place < total) & (key > least), CHUNK, CHUNKS)
            equal += by_chunk(unit, (place < total) & (key == least), CHUNK, CHUNKS)
    may = tl.maximum(of_equals - (tl.cumsum(equal) - equal), 0)
    number = better + greater + tl.minimum(equal, may)
    tl.store(firsts + chunk, tl.cumsum(number) - number, mask=chunk < chunks)
    tl.store(equals + chunk, may, mask=chunk < chunks)
    return least


@triton.jit(do_not_specialize=["layer"])
def narrow_kernel(
    formulas,
    num_units,
    counts,
    dense_layers,
    best,
    bins,
    of_chunks,
    open_count,
    leasts,
    tickets,
    layer,
    room,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    COVERS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Find the lowest key that is kept of one row and KV head. Grid `[rows, H, programs]`.

    Args:
        formulas, num_units, counts, dense_layers: int32 `[rows]`; counts `[rows, H]` if COVERS.
        best: int32 `[rows, H, 2, room]`: keys by unit, as `select_kernel` leaves them when COUNTED;
            gets the units whose keys lie in the bin of the lowest that is kept, in any order.
        bins: int32 `[rows, H, BINS]`, keys in each; zero afterwards.
        of_chunks: int32 `[rows, H, 3, CHUNKS]`, of each chunk: keys in better bins, then the place
            of its first entry, and how many keys equal to the lowest it may keep.
        open_count: int32 `[rows, H]`, units that are listed; zero before and after.
        leasts: int32 `[rows, H]`, the lowest key that is kept.
        tickets: int32 `[rows, H]`, zero before and after.
        CHUNK: scores that are looked at together. CHUNKS: those of the longest row, a power of two.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, head, program = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    best += pair * 2 * room
    bins += pair * BINS
    of_chunks += pair * 3 * CHUNKS
    nth = tl.arange(0, BINS)
    counted = tl.load(bins + nth, cache_modifier=".cg")
    unit, key = load_chunk(best, program, room // CHUNK, CHUNK)
    total = tl.load(num_units + row)
    count = tl.load(counts + pair) if COVERS else tl.load(counts + row)
    chunks = chunks_of(formulas, num_units, dense_layers, row, layer, CHUNK)
    programs = tl.minimum(tl.num_programs(2), chunks)
    if program >= programs:
        return
    middle, count = crossing(counted, count)
    listed = tl.sum(tl.where(nth == middle, counted, 0))
    for chunk in range(program, chunks, programs):
        exists, bin = unit < total, bin_of(key)
        tl.store(of_chunks + chunk, tl.sum((exists & (bin > middle)).to(tl.int32)))
        open = (exists & (bin == middle)).to(tl.int32)
        found = tl.sum(open)
        if found > 0:
            first = tl.atomic_add(open_count + pair, found, sem="relaxed")
            tl.store(best + room + first + tl.cumsum(open) - 1, unit, mask=open != 0)
        unit, key = load_chunk(best, chunk + programs, chunks, CHUNK)
    if comes_last(tickets + pair, programs):
        least = settle(
            best, best + room, listed, count, chunks, of_chunks, of_chunks + CHUNKS,
            of_chunks + 2 * CHUNKS, CHUNK, CHUNKS,
        )  # fmt: skip
        tl.store(leasts + pair, least.to(tl.int32, bitcast=True))
        tl.store(open_count + pair, 0)
        tl.store(bins + nth, tl.zeros([BINS], tl.int32))


@triton.jit(do_not_specialize=["layer"])
def place_kernel(
    table,
    formulas,
    num_units,
    dense_layers,
    finers,
    physical,
    logical,
    offsets,
    best,
    of_chunks,
    leasts,
    read,
    does,
    drawn,
    layer,
    room,
    widest,
    stride_table,
    stride_read,
    entry_scale,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LOGICAL: tl.constexpr,
    MARKED: tl.constexpr,
    HELD: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Write what each chunk of one row and KV head keeps. Grid `[rows, H, programs]`.

    Args:
        table, formulas, num_units, dense_layers, finers, physical, logical, offsets, read, does,
            drawn, entry_scale: as of `select_kernel`.
        best, of_chunks, leasts: as `narrow_kernel` leaves them.
        CHUNK, CHUNKS: as of it.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, head, program = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    best += pair * 2 * room
    of_chunks += pair * 3 * CHUNKS
    unit, key = load_chunk(best, program, room // CHUNK, CHUNK)
    total, finer = tl.load(num_units + row), tl.load(finers + row)
    least = tl.load(leasts + pair).to(tl.uint32, bitcast=True)
    physical += tl.load(offsets + pair)
    chunks = chunks_of(formulas, num_units, dense_layers, row, layer, CHUNK)
    table += row.to(tl.int64) * stride_table
    logical += pair * widest
    read += pair * stride_read
    drawn += pair * widest
    holds = tl.load(does + row) == HOLDS if HELD else False
    offset = tl.where(entry_scale == 1, 0, head)
    for chunk in range(program, chunks, tl.num_programs(2)):
        placed = tl.load(of_chunks + CHUNKS + chunk)
        of_equals = tl.load(of_chunks + 2 * CHUNKS + chunk)
        keep, _ = kept(tl.where(unit < total, key, 0), least, of_equals)
        store_marks(read, unit, keep, unit < total, MARKED)
        store_table(
            unit, key, keep, placed, table, finer, physical, logical, drawn, entry_scale, offset,
            holds, LOGICAL, HELD,
        )  # fmt: skip
        unit, key = load_chunk(best, chunk + tl.num_programs(2), chunks, CHUNK)
