"""Decode attention over listed units: split over keys, lengths on the device, one launch.

Grid `[splits, H, rows]`. Every split works through its run of units with the whole query group in
one matrix product; the split that finishes last joins the partial results, so no second launch is
needed. How a row is split depends on its own count alone: into SPLITS parts at most, of
LEAST_TOKENS at least.

Where servers keep views of requests (VIEWS), a row that has one reads single tokens, other ones in
every KV head: those that are listed, and all from when the list was made on. The first split of
such a row notes its queries, by which the view is made anew.
"""

import triton
import triton.language as tl

from . import spec
from .buffers import VIEW_FIELDS as FIELDS
from .primitives import LN2, LOG2E, UNIT_BITS, load_group, padded, take_turn

NOTHING = tl.constexpr(spec.NOTHING)
VIEW_FIELDS = tl.constexpr(FIELDS)
JOINED = tl.constexpr(8)
"""Splits whose results are loaded before the first of them is added."""
LEAST_TOKENS = tl.constexpr(128)
"""Of a split: reading fewer takes no less time, and every split more is one more to be joined."""


@triton.jit
def attend_units(
    group, keys, values, units, unit_size, kept, num_kept, shift, first, last, scale,
    stride_key_slot, stride_value_slot,
    UNIT: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr,
    VIEWS: tl.constexpr, FINER: tl.constexpr,
):  # fmt: skip
    """Attention of a group over list positions `[first, last)`, in tokens of the unit list.

    With FINER units have `unit_size` tokens, a divisor of UNIT.

    With VIEWS the first `num_kept` of them are the tokens `kept`, the others are moved by `shift`.

    Returns:
        (out `[G, Dv]` not yet divided, maximum `[G]` of the logits in base 2, sum `[G]`).
    """
    d, dv = tl.arange(0, padded(DIM)), tl.arange(0, padded(VALUE_DIM))
    out = tl.zeros([padded(GROUP, 16), padded(VALUE_DIM)], tl.float32)
    best = tl.full([padded(GROUP, 16)], float("-inf"), tl.float32)
    total = tl.zeros([padded(GROUP, 16)], tl.float32)
    for start in tl.range(first, last, TOKENS, num_stages=STAGES):
        token = start + tl.arange(0, TOKENS)
        inside = token < last
        if VIEWS:
            chosen = tl.load(kept + token, mask=inside & (token < num_kept), other=0)
            token = tl.where(token < num_kept, chosen, token + shift)
        size = unit_size if FINER else UNIT
        unit = tl.load(units + token // size, mask=inside, other=0) & UNIT_BITS
        slot = unit.to(tl.int64) * size + token % size
        k = tl.load(
            keys + slot[None, :] * stride_key_slot + d[:, None],
            mask=inside[None, :] & (d < DIM)[:, None],
            other=0.0,
        )
        v = tl.load(
            values + slot[:, None] * stride_value_slot + dv[None, :],
            mask=inside[:, None] & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        logit = tl.dot(group, k, input_precision="ieee") * (scale * LOG2E)
        logit = tl.where(inside[None, :], logit, float("-inf"))
        higher = tl.maximum(best, tl.max(logit, 1))
        weight = tl.exp2(logit - higher[:, None])
        decay = tl.exp2(best - higher)
        total = total * decay + tl.sum(weight, 1)
        out = tl.dot(weight.to(v.dtype), v, acc=out * decay[:, None], input_precision="ieee")
        best = higher
    return out, best, total


@triton.jit
def joined_lse(part_lse, active, GROUP: tl.constexpr, SPLITS: tl.constexpr):
    """Log-sum-exp `[G]` over all splits of one row and KV head, in base 2 as theirs."""
    g = tl.arange(0, padded(GROUP))
    real = g < GROUP
    split = tl.arange(0, padded(SPLITS))
    there = (split < active)[:, None] & real[None, :]
    known = tl.load(
        part_lse + split[:, None] * GROUP + g[None, :], mask=there, other=float("-inf"),
        cache_modifier=".cg",
    )  # fmt: skip
    best = tl.where(real, tl.max(known, 0), 0.0)
    total = tl.where(real, tl.sum(tl.exp2(known - best[None, :]), 0), 1.0)
    return best + tl.log2(total)


@triton.jit
def join_splits(
    parts, part_lse, active, out, lse,
    VALUE_DIM: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the partial results of one row and KV head, JOINED splits at a time, in their order."""
    g, dv = tl.arange(0, padded(GROUP)), tl.arange(0, padded(VALUE_DIM))
    real = g < GROUP
    joined = joined_lse(part_lse, active, GROUP, SPLITS)
    mask = real[:, None] & (dv < VALUE_DIM)[None, :]
    result = tl.zeros([padded(GROUP), padded(VALUE_DIM)], tl.float32)
    for first in range(0, active, JOINED):
        i = first + tl.arange(0, JOINED)
        here = (i < active)[:, None] & real[None, :]
        which = i[:, None] * GROUP + g[None, :]
        part = tl.load(
            parts + which[:, :, None] * VALUE_DIM + dv[None, None, :],
            mask=here[:, :, None] & (dv < VALUE_DIM)[None, None, :], other=0.0,
            cache_modifier=".cg",
        )  # fmt: skip
        share = tl.load(part_lse + which, mask=here, other=float("-inf"), cache_modifier=".cg")
        result += tl.sum(part * tl.exp2(share - joined[None, :])[:, :, None], 0)
    tl.store(out + g[:, None] * VALUE_DIM + dv[None, :], result.to(out.dtype.element_ty), mask=mask)
    tl.store(lse + g, joined * LN2, mask=real)


@triton.jit
def note_queries(
    group, queries, view, position, view_layer,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Put the queries of one KV head into the ring of a layer of a view; 0 places: it has none.

    Args:
        group: `[G, D]`, padded.
        queries: `[queries, H * G * D]`, moved on to this head.
        view: record of the view.
        position: of the token.
    """
    first, size = tl.load(view + 1), tl.load(view + 2)
    g, d = tl.arange(0, padded(GROUP, 16)), tl.arange(0, padded(DIM))
    place = (first + view_layer * size + position % tl.maximum(size, 1)).to(tl.int64)
    where = queries + place * HEADS * GROUP * DIM + g[:, None] * DIM + d[None, :]
    mask = (g < GROUP)[:, None] & (d < DIM)[None, :] & (size > 0)
    tl.store(where, group.to(queries.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["layer", "view_layer"])
def attend_kernel(
    q,
    keys,
    values,
    table,
    selected,
    offsets,
    formulas,
    num_units,
    counts,
    tails,
    dense_layers,
    finers,
    parts,
    part_lse,
    tickets,
    out,
    lse,
    viewed,
    views,
    kept,
    queries,
    chosen,
    scale,
    layer,
    view_layer,
    plan_stride,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_key_slot,
    stride_key_head,
    stride_value_slot,
    stride_value_head,
    stride_table,
    stride_view,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    VIEWS: tl.constexpr,
    FINER: tl.constexpr,
    COVERS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """One split of one row and KV head.

    Args:
        q: `[rows, H, G, D]`; keys `[slots, H, D]`; values `[slots, H, Dv]`.
        table: int32 `[rows, width]`, all units of a row: read by rows that are dense here.
        selected: int32, physical units of a pair from `offsets[row, head]` on.
        formulas, num_units, counts, tails, dense_layers: int32 `[rows]`.
        finers: int32 `[rows]`, see `select_kernel`.
        parts: float32 `[rows, H, SPLITS, G, Dv]`; part_lse: float32 `[rows, H, SPLITS, G]`.
        tickets: int32 `[rows, H]`, zero before and after.
        out: `[rows, H, G, Dv]` contiguous; lse: float32 `[rows, H, G]`.
        viewed, views, kept, queries: `viewed`, `records`, `kept` and `queries` of
            `buffers.ViewBuffers`; anything where VIEWS is false.
        chosen: int32 `[rows, H]`, in place of the counts when COVERS.
        view_layer: layer, counted from this rank's first.
        plan_stride: of `viewed`.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    split, row = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    pair = row.to(tl.int64) * HEADS + head
    count = tl.load(chosen + pair) if COVERS else tl.load(counts + row)
    units = selected + tl.load(offsets + pair)
    unit_size, tail = UNIT, tl.load(tails + row)
    if FINER:
        unit_size = UNIT >> tl.load(finers + row)
    if (tl.load(formulas + row) == NOTHING) | (layer < tl.load(dense_layers + row)):
        count = tl.load(num_units + row)
        units = table + row.to(tl.int64) * stride_table
        if FINER:
            tokens = (count - 1) * unit_size + tail
            unit_size, count = UNIT, tl.cdiv(tokens, UNIT)
            tail = tokens - (count - 1) * UNIT
    share = tl.maximum(tl.cdiv(count, SPLITS), LEAST_TOKENS // UNIT)
    active = tl.cdiv(count, share)
    share *= UNIT
    tokens = (count - 1) * unit_size + tail
    if FINER:
        share = tl.maximum(tl.cdiv(tokens, SPLITS), LEAST_TOKENS)
        active = tl.cdiv(tokens, share)
    q += row.to(tl.int64) * stride_q_row + head * stride_q_head
    num_kept, shift = 0, 0
    if VIEWS:
        view, made = tl.load(viewed + row), tl.load(viewed + plan_stride + row)
        if (view >= 0) & (layer >= tl.load(dense_layers + row)):
            record = views + view.to(tl.int64) * stride_view
            if split == 0:
                note_queries(
                    load_group(q, stride_q_group, GROUP, DIM, UPCAST),
                    queries + head * GROUP * DIM, record, tokens - 1, view_layer,
                    HEADS, GROUP, DIM,
                )  # fmt: skip
            if made > 0:
                span = record + VIEW_FIELDS + 2 * (view_layer * HEADS + head)
                kept += tl.load(span)
                num_kept = tl.load(span + 1)
                shift = made - num_kept
                share = tl.maximum(tl.cdiv(tokens - shift, SPLITS), LEAST_TOKENS)
                active = tl.cdiv(tokens - shift, share)
    if split >= active:
        return
    first = split * share
    last = tl.minimum(first + share, tokens - shift)
    part, best, total = attend_units(
        load_group(q, stride_q_group, GROUP, DIM, UPCAST),
        keys + head * stride_key_head, values + head * stride_value_head, units,
        unit_size, kept, num_kept, shift, first, last, scale, stride_key_slot, stride_value_slot,
        UNIT, DIM, VALUE_DIM, GROUP, TOKENS, STAGES, UPCAST, VIEWS, FINER,
    )  # fmt: skip
    part = part / total[:, None]
    part_base2 = best + tl.log2(total)
    g, dv = tl.arange(0, padded(GROUP, 16)), tl.arange(0, padded(VALUE_DIM))
    real = g < GROUP
    mask = real[:, None] & (dv < VALUE_DIM)[None, :]
    out += pair * GROUP * VALUE_DIM
    lse += pair * GROUP
    if active == 1:
        where = out + g[:, None] * VALUE_DIM + dv[None, :]
        tl.store(where, part.to(out.dtype.element_ty), mask=mask)
        tl.store(lse + g, part_base2 * LN2, mask=real)
        return
    parts += pair * SPLITS * GROUP * VALUE_DIM
    part_lse += pair * SPLITS * GROUP
    tl.store(parts + (split * GROUP + g[:, None]) * VALUE_DIM + dv[None, :], part, mask=mask)
    tl.store(part_lse + split * GROUP + g, part_base2, mask=real)
    tl.debug_barrier()
    if tl.atomic_add(tickets + pair, 1, sem="acq_rel", scope="gpu") != active - 1:
        return
    tl.store(tickets + pair, 0)
    join_splits(parts, part_lse, active, out, lse, VALUE_DIM, GROUP, SPLITS)


@triton.jit
def merge_kernel(
    out_a, lse_a, out_b, lse_b, out, lse, rows, VALUE_DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """Join two attention states over disjoint keys: `[rows, Dv]`, `[rows]` (natural log)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dv = tl.arange(0, padded(VALUE_DIM))
    real = row < rows
    mask = real[:, None] & (dv < VALUE_DIM)[None, :]
    a = tl.load(lse_a + row, mask=real, other=0.0)
    b = tl.load(lse_b + row, mask=real, other=0.0)
    best = tl.maximum(a, b)
    joined = best + tl.log(tl.exp(a - best) + tl.exp(b - best))
    where = row.to(tl.int64)[:, None] * VALUE_DIM + dv[None, :]
    part_a = tl.load(out_a + where, mask=mask, other=0.0).to(tl.float32)
    part_b = tl.load(out_b + where, mask=mask, other=0.0).to(tl.float32)
    result = part_a * tl.exp(a - joined)[:, None] + part_b * tl.exp(b - joined)[:, None]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=mask)
    tl.store(lse + row, joined, mask=real)
