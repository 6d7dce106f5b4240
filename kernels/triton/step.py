"""Once per decode step, inside the captured graph: plan rows, list their units, find what is new.

The device repeats the host policy (`selection.policy.plan_rows`) from the lengths and from one
table of options by row of `req_to_token`, so a step needs no number from the host.
"""

import triton
import triton.language as tl

from . import spec

NOTHING = tl.constexpr(spec.NOTHING)
NO_STAMP = tl.constexpr(-(2**31))
"""Bit of a table's entry whose unit is full and has no stamp."""
EVERY = tl.constexpr(2**31 - 1)


@triton.jit
def plan_row(length, options, ratios, row, stride_options, UNIT: tl.constexpr):
    """Options of a request and its length -> (formula, begin, end, units, count, tail, dense,
    finer), units being the row's: those of the table have 2^finer of them."""
    options += row * stride_options
    formula = tl.load(options)
    budget, least = tl.load(options + 1), tl.load(options + 2)
    sink, window = tl.load(options + 3), tl.load(options + 4)
    ratio = tl.load(ratios + row)
    share = tl.floor(ratio * length.to(tl.float64)).to(tl.int32)
    budget = tl.where(ratio > 0, tl.maximum(least, share), budget)
    finer = tl.load(options + 6)
    own = UNIT >> finer
    end = tl.minimum(tl.maximum(length - window, 0) // UNIT, tl.cdiv(length, UNIT) - 1)
    begin = tl.minimum(tl.cdiv(sink, UNIT), end)
    units = tl.cdiv(length, own)
    tail = (length - 1) % own + 1
    count = tl.minimum(units, tl.maximum((budget - tail) // own + 1, 1))
    formula = tl.where(count == units, NOTHING, formula)
    return formula, begin << finer, end << finer, units, count, tail, tl.load(options + 5), finer


@triton.jit
def begin_kernel(
    request_rows,
    lengths,
    req_to_token,
    option_table,
    ratios,
    plan,
    table,
    sealed,
    pending,
    pending_count,
    order,
    shared,
    view_of,
    views,
    viewed,
    asked,
    goals,
    width,
    capacity,
    plan_stride,
    stride_request,
    stride_options,
    stride_view,
    UNIT: tl.constexpr,
    UNITS_PER_PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    VIEWS: tl.constexpr,
    COVERS: tl.constexpr,
):
    """Plan the row at one place and list a block of its units. Grid `[rows, blocks of units]`.

    Args:
        request_rows: int64 `[rows]`, rows of `req_to_token`; lengths: int64 or int32 `[rows]`.
        req_to_token: int32 `[requests, context]`.
        option_table: int32 `[requests, 7]`, named so because a launch keeps the name `options` for
            the compiler's; ratios: float64 `[requests]`, 0 for budgets in tokens.
        plan: int32 `[8, plan_stride]`: formula, begin, end, units, count, tail, dense layers, and
            how fine the row's units are: those of the table have 2^finer of them.
        table: int32 `[rows, width]`, physical units, written up to the row's last; negative where
            a full unit has no stamp.
        sealed: uint8 `[units]`.
        pending: int32 `[capacity]`, gets full units without a stamp; what does not fit stays
            without one and is met again in a later step. pending_count: int32 `[1]`.
        order: int32 `[rows]`, the row at each place; read when ROWS > 1.
        shared: int32 `[rows]`, by place: lowered to the leading full units that are those of the
            first of its ROWS rows.
        view_of, views, viewed: `of_request`, `records` and `viewed` of `buffers.ViewBuffers`, the
            last with rows of `plan_stride`; anything where VIEWS is false.
        asked, goals: of `cover_buffers.CoverBuffers`; anything where COVERS is false.
    """
    place, block = tl.program_id(0), tl.program_id(1)
    row = place
    if ROWS > 1:
        row = tl.load(order + place)
    request = tl.load(request_rows + row).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    formula, begin, end, own_units, count, tail, dense, finer = plan_row(
        length, option_table, ratios, request, stride_options, UNIT
    )
    units = tl.cdiv(length, UNIT)
    if block == 0:
        tl.store(plan + row, formula)
        tl.store(plan + plan_stride + row, begin)
        tl.store(plan + 2 * plan_stride + row, end)
        tl.store(plan + 3 * plan_stride + row, own_units)
        tl.store(plan + 4 * plan_stride + row, count)
        tl.store(plan + 5 * plan_stride + row, tail)
        tl.store(plan + 6 * plan_stride + row, dense)
        tl.store(plan + 7 * plan_stride + row, finer)
        if COVERS:
            tl.store(goals + row, tl.load(asked + request))
        if VIEWS:
            view = tl.load(view_of + request)
            made = tl.load(views + view * stride_view, mask=view >= 0, other=0)
            tl.store(viewed + row, view)
            tl.store(viewed + plan_stride + row, tl.where(made < length, made, 0))
    unit = block * BLOCK + tl.arange(0, BLOCK)
    exists = unit < units
    if block * BLOCK >= units:
        return
    slot = tl.load(req_to_token + request * stride_request + unit * UNIT, mask=exists, other=0)
    physical = slot // UNIT
    full = (unit < length // UNIT) & (physical >= UNITS_PER_PAGE)
    stamp = tl.load(sealed + physical, mask=full, other=1)
    fresh = (full & (stamp == 0)).to(tl.int32)
    entry = tl.where(fresh != 0, physical | NO_STAMP, physical)
    tl.store(table + row.to(tl.int64) * width + unit, entry, mask=exists)
    if ROWS > 1:  # noqa: SIM102 - decided when compiled, the inner one when run
        if place % ROWS != 0:
            first = tl.load(order + place // ROWS * ROWS)
            other = tl.load(request_rows + first).to(tl.int64)
            both = tl.minimum(length, tl.load(lengths + first).to(tl.int32)) // UNIT
            twin = tl.load(
                req_to_token + other * stride_request + unit * UNIT, mask=unit < both, other=-1
            )
            alike = tl.min(tl.where(twin == slot, EVERY, unit))
            tl.atomic_min(shared + place, alike)
    found = tl.sum(fresh)
    if found > 0:
        free = tl.atomic_add(pending_count, found) + tl.cumsum(fresh) - 1
        tl.store(pending + free, physical, mask=(fresh != 0) & (free < capacity))


@triton.jit(do_not_specialize=["count", "rows"])
def forget_kernel(
    slots, sealed, pending_count, shared, count, rows,
    PAGE: tl.constexpr, UNITS_PER_PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Clear the stamps of units that `slots` lie in, and of pages that start with one of them.

    Page 0 has no stamps. A page may be written in its middle, behind slots that stay: by a session
    that goes on, or after a step that was taken back. The list of pending units is emptied: a step
    that broke off may have left some in it. `shared` int32 `[rows]` begins anew.
    """
    if tl.program_id(0) == 0:
        tl.store(pending_count, 0)
        for first in range(0, rows, BLOCK):
            place = first + tl.arange(0, BLOCK)
            tl.store(shared + place, tl.full([BLOCK], EVERY, tl.int32), mask=place < rows)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + i, mask=i < count, other=0).to(tl.int64)
    starts = (slot % PAGE == 0) & (slot >= PAGE)
    cleared = tl.zeros([BLOCK], tl.uint8)
    tl.store(sealed + slot // (PAGE // UNITS_PER_PAGE), cleared, mask=slot >= PAGE)
    for unit in tl.static_range(UNITS_PER_PAGE):
        tl.store(sealed + slot // PAGE * UNITS_PER_PAGE + unit, cleared, mask=starts)


@triton.jit
def seal_kernel(pending, pending_count, sealed, capacity, BLOCK: tl.constexpr):
    """Stamp all pending units and empty their list. One program."""
    count = tl.minimum(tl.load(pending_count), capacity)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        unit = tl.load(pending + i, mask=i < count, other=0)
        tl.store(sealed + unit, tl.full([BLOCK], 1, tl.uint8), mask=i < count)
    tl.debug_barrier()
    tl.store(pending_count, 0)
