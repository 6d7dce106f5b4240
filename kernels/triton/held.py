"""Selections that serve several steps: what a request holds of its last one, and choosing from it.

    plan     once per step   which rows choose from what they hold, and which will hold what they do
    choose   each layer      behind `select`, one program per row and KV head
    commit   once per step   behind the last layer: what was chosen in it is held

A row that uses what it holds is not scored: to the launches in front it is one that reads
everything. For one that begins a period `select` draws as many candidates as any of its steps will
want; they are held with their keys, and the first step chooses from them as all others do. No step
of the period misses one:

    Sinks stay, and units leave the window behind the candidates. So those with a score are the ones
    that were candidates when it was made, at any length, and all others rank behind them. Of those
    with a score, of which ties go to the lower, a step reads the k best: they are among the n best
    for any n that is not below k.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import take_turn
from .radix import kept, load_keys, threshold_in_memory, threshold_of
from .select import mark_unread, store_marks, store_run, store_table
from .step import plan_row

NOTHING = tl.constexpr(spec.NOTHING)
POSITION = tl.constexpr(spec.POSITION)
MOST_EVERY = tl.constexpr(spec.MOST_EVERY)
ORDINARY = tl.constexpr(spec.ORDINARY)
HOLDS, USES = tl.constexpr(spec.HOLDS), tl.constexpr(spec.USES)
ASKED = tl.constexpr(3)
"""Of a row of `req_to_token`: steps of a period, its place or -1, and a number that tells whose
it is."""
RECORD = tl.constexpr(4)
"""Of a place: for whom was chosen, tokens of the context then, units that are held, and the end of
the candidates."""


@triton.jit
def wanted_of(begin, end, units, count):
    """Candidates that a row reads beside sinks and window."""
    return count - (begin + units - end)


@triton.jit
def plan_held_kernel(
    request_rows,
    lengths,
    option_table,
    ratios,
    asked,
    records,
    formulas,
    counts,
    does,
    places,
    drafts,
    rows,
    most,
    stride_options,
    UNIT: tl.constexpr,
):
    """Say what a row does in this step. Grid `[most rows]`: rows that are not in it do nothing.

    Args:
        request_rows: int64 `[rows]`; lengths: int64 or int32 `[rows]`.
        option_table, ratios: see `begin_kernel`.
        asked: int32 `[requests, 3]`, see ASKED.
        records: int32 `[places, 4]`, see RECORD.
        formulas: int32 `[rows]`, by which rows are scored in this step; NOTHING for those that use
            what they hold.
        counts: int32 `[rows]`, units that `select` draws.
        does: int32 `[2, rows]`, ORDINARY, HOLDS or USES; and 0, until a layer has chosen.
        places: int32 `[rows]`.
        drafts: int32 `[rows, 4]`, what the row's place says, or will say behind this step.
        most: units that are held at most; a row that wants more chooses in every step.
    """
    row, most_rows = tl.program_id(0), tl.num_programs(0)
    tl.store(does + row, ORDINARY)
    tl.store(does + most_rows + row, 0)
    if row >= rows:
        return
    request = tl.load(request_rows + row).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    formula, begin, end, units, count, _, _, _, _, _ = plan_row(
        length, option_table, ratios, request, stride_options, UNIT
    )
    asked += request * ASKED
    every, place, owner = tl.load(asked), tl.load(asked + 1), tl.load(asked + 2)
    records += place.to(tl.int64) * RECORD
    of = tl.load(records, mask=place >= 0, other=-1)
    since = tl.load(records + 1, mask=place >= 0, other=0)
    number = tl.load(records + 2, mask=place >= 0, other=0)
    until = tl.load(records + 3, mask=place >= 0, other=0)
    may = (place >= 0) & (every > 1) & (formula != NOTHING) & (formula != POSITION)
    uses = may & (of == owner) & (since <= length) & (length < since + every)
    step = tl.arange(0, MOST_EVERY)
    _, first, last, total, keeps, _, _, _, _, _ = plan_row(
        length + step, option_table, ratios, request, stride_options, UNIT
    )
    wanted = tl.max(tl.where(step < every, wanted_of(first, last, total, keeps), 0))
    if uses == 0:
        number, since, until = tl.minimum(end - begin, wanted), length, end
    holds = may & (uses == 0) & (number <= most)
    draws = count - wanted_of(begin, end, units, count) + number
    tl.store(formulas + row, tl.where(uses, NOTHING, formula))
    tl.store(counts + row, tl.where(holds, draws, count))
    tl.store(does + row, tl.where(uses, USES, tl.where(holds, HOLDS, ORDINARY)))
    tl.store(places + row, place)
    drafts += row * RECORD
    tl.store(drafts, owner)
    tl.store(drafts + 1, since)
    tl.store(drafts + 2, number)
    tl.store(drafts + 3, until)


@triton.jit
def commit_held_kernel(does, places, drafts, records):
    """Say of the rows that have chosen for a period that they hold it. Grid `[most rows]`.

    As this is behind the last layer, a step that breaks off leaves nothing that is half its own.
    """
    row, most_rows = tl.program_id(0), tl.num_programs(0)
    if (tl.load(does + row) == HOLDS) & (tl.load(does + most_rows + row) > 0):
        records += tl.load(places + row).to(tl.int64) * RECORD
        for i in tl.static_range(RECORD):
            tl.store(records + i, tl.load(drafts + row * RECORD + i))


@triton.jit
def hold(physical, drawn, keys, units, number, CHUNK: tl.constexpr):
    """Keep what `select` has drawn: candidates, and their keys."""
    for first in range(0, number, CHUNK):
        place = first + tl.arange(0, CHUNK)
        there = place < number
        tl.store(units + place, tl.load(physical + place, mask=there, other=0), mask=there)
        tl.store(keys + place, tl.load(drawn + place, mask=there, other=0), mask=there)


@triton.jit
def threshold_held(keys, number, wanted, CHUNK: tl.constexpr):
    """The lowest key of those that are read, and how many equal to it: none, some or all."""
    least, of_equals = tl.full([], 0xFFFFFFFF, tl.uint32), 0
    if wanted >= number:
        least = tl.zeros([], tl.uint32)
    elif wanted > 0:
        if number <= CHUNK:
            place = tl.arange(0, CHUNK)
            key = load_keys(keys, place, number)
            least, of_equals = threshold_of(key, place < number, wanted)
        else:
            least, of_equals = threshold_in_memory(keys, number, wanted, CHUNK)
    return least, of_equals


@triton.jit(do_not_specialize=["layer", "nth", "layers"])
def choose_held_kernel(
    table,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    finers,
    does,
    places,
    drafts,
    physical,
    logical,
    offsets,
    read,
    chosen,
    drawn,
    keys,
    units,
    layer,
    nth,
    layers,
    most_rows,
    most,
    widest,
    stride_table,
    stride_read,
    CHUNK: tl.constexpr,
    LOGICAL: tl.constexpr,
    MARKED: tl.constexpr,
    COVERS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Choose from what is held of one row and KV head. Grid `[rows, H]`.

    Args:
        table, begins, ends, num_units, counts, dense_layers, finers: as of `select_kernel`; the
            counts are those of this step.
        does, places, drafts: as `plan_held_kernel` leaves them, for `most_rows`.
        physical, offsets: what `select_kernel` has drawn, units in place of entries, for rows that
            begin a period; gets the entries of this step.
        logical: int32 `[rows, H, widest]`, written when LOGICAL.
        read: uint8 `[rows, H, stride_read]`, as of `select_kernel`; written anew when MARKED.
        chosen: int32 `[rows, H]`, units to read: this step's, in place of what was drawn, when
            COVERS.
        drawn: int32 `[rows, H, widest]`, keys of what was drawn.
        keys, units: int32 `[places, layers, H, most]`, what is held, in ascending order.
        layer: number in the model; nth: among the `layers` that are held.
        CHUNK: scores that are looked at together.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    pair = row.to(tl.int64) * heads + head
    doing = tl.load(does + row)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    total, count, finer = tl.load(num_units + row), tl.load(counts + row), tl.load(finers + row)
    number, until = tl.load(drafts + row * RECORD + 2), tl.load(drafts + row * RECORD + 3)
    run = ((tl.load(places + row).to(tl.int64) * layers + nth) * heads + head) * most
    physical += tl.load(offsets + pair)
    if (doing == ORDINARY) | (layer < tl.load(dense_layers + row)):
        return
    table += row.to(tl.int64) * stride_table
    logical += pair * widest
    read += pair * stride_read
    keys += run
    units += run
    if COVERS:
        tl.store(chosen + pair, count)
    mark_unread(read, begin, end, CHUNK, MARKED)
    if doing == HOLDS:
        hold(physical + begin, drawn + pair * widest + begin, keys, units, number, CHUNK)
        tl.store(does + most_rows + row, 1)
    tl.debug_barrier()  # other threads read what was stored, and mark what is read
    wanted = wanted_of(begin, end, total, count)
    least, of_equals = threshold_held(keys, number, wanted, CHUNK)
    lists = (table, finer, physical, logical, read, 1, 0, True)
    placed = store_run(0, begin, 0, *lists, CHUNK, LOGICAL, MARKED)
    for first in range(0, number, CHUNK):
        place = first + tl.arange(0, CHUNK)
        unit = tl.load(units + place, mask=place < number, other=0)
        key = load_keys(keys, place, number)
        keep, of_equals = kept(key, least, of_equals)
        keep &= place < number
        store_marks(read, unit, keep, keep, MARKED)
        placed = store_table(
            unit, key, keep, placed, table, finer, physical, logical, drawn, 1, 0, False, LOGICAL,
            False,
        )  # fmt: skip
    since = tl.maximum(until, begin)
    unscored = tl.maximum(wanted - number, 0)
    placed = store_run(since, since + unscored, placed, *lists, CHUNK, LOGICAL, MARKED)
    store_run(end, total, placed, *lists, CHUNK, LOGICAL, MARKED)
