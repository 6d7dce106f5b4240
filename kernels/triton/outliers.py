"""ShadowKV's outliers: the chunks whose landmark fits worst are read whatever they score.

How badly a landmark fits does not depend on queries, but which chunks are the worst of a context
does depend on how far that reaches, so each layer looks again: chunks of candidates keep their
worst, the program that comes last chooses among those and marks them with the highest logit there
is, behind the sums that a softmax over all candidates needs.
"""

import triton
import triton.language as tl

from . import spec
from .primitives import LARGEST, comes_last, finer_units, take_turn
from .radix import kept, load_keys, sortable, threshold_in_memory
from .select import store_best

LANDMARK = tl.constexpr(spec.LANDMARK)


@triton.jit
def mark(logits, unit, keep):
    """Give units the highest logit of all, as the first query head sees them."""
    tl.store(logits + unit, tl.full(unit.shape, LARGEST, tl.float32), mask=keep)


@triton.jit(do_not_specialize=["layer"])
def outliers_kernel(
    misfits,
    table,
    formulas,
    begins,
    ends,
    num_units,
    counts,
    dense_layers,
    finers,
    logits,
    best,
    tickets,
    layer,
    share,
    width,
    stride_table,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Mark the outliers of one row and KV head. Grid `[chunks, H, rows]`.

    Args:
        misfits: `[physical chunks, H]`, 1 less the lowest cosine of a key with its landmark.
        table: int32 `[rows, stride_table]`, see `begin_kernel`.
        formulas, begins, ends, num_units, counts, dense_layers, finers: int32 `[rows]`.
        logits: float32 `[rows, H, G, width]`, marked.
        best: int32 `[rows, H, 2, chunks * CHUNK]`, see `select_kernel`.
        tickets: int32 `[rows, H]`, zero before and after.
        share: part of what is kept that outliers may take.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    chunk, row, head = tl.program_id(0), tl.program_id(2), tl.program_id(1)
    heads = tl.num_programs(1)
    pair = row.to(tl.int64) * heads + head
    begin, end, count = tl.load(begins + row), tl.load(ends + row), tl.load(counts + row)
    always = tl.load(num_units + row) - tl.maximum(end - begin, 0)
    quota = tl.minimum((count.to(tl.float32) * share).to(tl.int32), count - always)
    ranked = (tl.load(formulas + row) == LANDMARK) & (layer >= tl.load(dense_layers + row))
    chunks = tl.cdiv(end - begin, CHUNK)
    if (quota <= 0) | (chunk >= chunks) | (ranked == 0):
        return
    table += row.to(tl.int64) * stride_table
    logits += pair * GROUP * width
    unit = begin + chunk * CHUNK + tl.arange(0, CHUNK)
    exists = unit < end
    physical = finer_units(table, unit, exists, tl.load(finers + row)).to(tl.int64)
    misfit = tl.load(misfits + physical * heads + head, mask=exists, other=0.0).to(tl.float32)
    key = tl.where(exists, sortable(misfit), 0).to(tl.uint32)
    room = tl.num_programs(0) * CHUNK
    best += pair * 2 * room
    each = tl.minimum(quota, CHUNK)
    store_best(key, unit, exists, quota, best + chunk * each, best + room + chunk * each)
    if not comes_last(tickets + pair, chunks):
        return
    total = (chunks - 1) * each + tl.minimum(end - begin - (chunks - 1) * CHUNK, quota)
    least, of_equals = threshold_in_memory(best, total, quota, CHUNK)
    for first in range(0, total, CHUNK):
        place = first + tl.arange(0, CHUNK)
        unit = tl.load(best + room + place, mask=place < total, other=0, cache_modifier=".cg")
        keep, of_equals = kept(load_keys(best, place, total), least, of_equals)
        mark(logits, unit, keep)
