"""What a selection leaves out, answered for by clusters: one more part of each row's attention.

An unread token of an open cluster weighs what its codes say, one of a shut cluster what its
centroid says; each enters with the mean value of its cluster. The result of a program looks like
that of a split of `attend`, which joins them all; see `segments.residual`.

Grid `[REST, H, rows]`. A program takes every REST-th segment, so what a row gets depends on the row
alone.
"""

import triton
import triton.language as tl

from .clusters import CLUSTERS, tokens_of
from .codes import entries, load_parts
from .looked_up import centroid_logits, clusters_of, looked_up
from .primitives import LOG2E, padded, take_turn


@triton.jit
def raised(best, logit, there):
    """Of logits `[G, n]`, where there: the maximum with `best`, weights, and what is left of old
    sums. Of nothing at all the maximum is -inf, and all weights are 0."""
    higher = tl.maximum(best, tl.max(tl.where(there, logit, float("-inf")), 1))
    base = tl.where(higher > float("-inf"), higher, 0.0)
    weight = tl.where(there, tl.exp2((logit - base[:, None]) * LOG2E), 0.0)
    return higher, weight, tl.exp2((best - base) * LOG2E)


@triton.jit
def by_cluster(weight, low, high, start, GROUP: tl.constexpr, RUN: tl.constexpr):
    """Sums of `[padded GROUP, RUN]` over runs of places, from `start` on: `[padded GROUP, 16]`.

    Tokens of a cluster stand side by side, so that its sum is a difference of two running ones.
    """
    running = tl.cumsum(weight, 1)
    last, before = tl.minimum(high - start, RUN) - 1, low - start - 1
    above = entries(running, tl.maximum(last, 0), GROUP)
    below = entries(running, tl.minimum(tl.maximum(before, 0), RUN - 1), GROUP)
    sums = tl.where((last >= 0)[None, :], above, 0.0) - tl.where((before >= 0)[None, :], below, 0.0)
    return tl.maximum(tl.where((last > before)[None, :], sums, 0.0), 0.0)


@triton.jit
def taller(x, GROUP: tl.constexpr):
    """Numbers of a group, `[padded GROUP]`, as many as a matrix product has rows at least."""
    row = tl.minimum(tl.arange(0, padded(GROUP, 16)), padded(GROUP) - 1)
    return tl.gather(x, row, 0)


@triton.jit
def taller_rows(x, GROUP: tl.constexpr):
    """The same of rows `[padded GROUP, 16]`."""
    row = tl.minimum(tl.arange(0, padded(GROUP, 16)), padded(GROUP) - 1)
    place = row[:, None] * CLUSTERS + tl.arange(0, CLUSTERS)[None, :]
    flat = tl.reshape(x, [padded(GROUP) * CLUSTERS])
    picked = tl.gather(flat, tl.reshape(place, [padded(GROUP, 16) * CLUSTERS]), 0)
    return tl.reshape(picked, [padded(GROUP, 16), CLUSTERS])


@triton.jit
def added(out, total, decay, sums, values, steps, GROUP: tl.constexpr):
    """Add clusters of these weights `[padded GROUP, 16]` to what was there: (out, total).

    Args:
        out: `[16 or more, Dv]`; total: `[padded GROUP]`.
        decay: `[padded GROUP]`, what is left of both.
        values: `[16, Dv]` in the keys' type, in units of `steps` `[16]`.
    """
    weight = taller_rows(sums * steps[None, :], GROUP).to(values.dtype)
    kept = taller(decay, GROUP)[:, None]
    out = tl.dot(weight, values, acc=out * kept, input_precision="ieee")
    return out, total * decay + tl.sum(sums, 1)


@triton.jit(do_not_specialize=["layer", "segments"])
def rest_kernel(
    q,
    codes,
    codebooks,
    scales,
    places,
    cluster_ends,
    values,
    records,
    opened,
    logits,
    counts,
    read,
    formulas,
    estimates,
    reaches,
    begins,
    ends,
    finers,
    dense_layers,
    parts,
    part_lse,
    scale,
    by_code,
    by_centroid,
    layer,
    segments,
    width,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_code_record,
    stride_code_head,
    stride_book_record,
    stride_book_head,
    stride_scale_record,
    stride_scale_head,
    stride_place_record,
    stride_place_head,
    stride_end_record,
    stride_end_head,
    stride_value_record,
    stride_value_head,
    stride_records,
    stride_opened,
    stride_read,
    RESIDUALS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SUBSPACES: tl.constexpr,
    SEGMENT: tl.constexpr,
    RUN: tl.constexpr,
    SPLITS: tl.constexpr,
    REST: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """One part of what one row and KV head does not read.

    Args:
        q, codes, codebooks, scales, places, cluster_ends, records, opened, logits, counts: see
            `opened_kernel`.
        values: int8 `[records, H, 16, Dv]`.
        read: uint8 `[rows, H, stride_read]`, of each unit of a row whether it is read.
        formulas: int32 `[rows]`, by which rows are scored in this step. Those with RESIDUALS read
            nothing of clusters that are shut; others may, by older scores too.
        estimates: int32 `[rows]`, 0 for rows that answer by what they read alone.
        reaches, begins, ends, finers, dense_layers: see `clusters_kernel`.
        parts: float32 `[rows, H, SPLITS + REST, G, Dv]`; part_lse: float32 of base 2 `[rows, H,
            SPLITS + REST, G]`, written behind the splits of `attend_kernel`.
        by_code, by_centroid: added to logits of stand-ins.
        RUN: see `opened_kernel`.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    part, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    pair = row * tl.num_programs(1) + head
    begin, end = tokens_of(begins, ends, finers, row, UNIT)
    own = UNIT >> tl.load(finers + row)
    among_opened = tl.load(formulas + row) == RESIDUALS
    asked = (tl.load(estimates + row) != 0) & (tl.load(reaches + row) > 0)
    if (asked == 0) | (layer < tl.load(dense_layers + row)):
        return
    q += row * stride_q_row + head * stride_q_head
    codes += head * stride_code_head
    codebooks += head * stride_book_head
    scales += head * stride_scale_head
    places += head * stride_place_head
    cluster_ends += head * stride_end_head
    values += head * stride_value_head
    records += row * stride_records
    opened += pair * stride_opened
    logits += pair * GROUP * width
    counts += pair * width
    read += pair * stride_read
    cut = load_parts(q, stride_q_group, GROUP, DIM, SUBSPACES, UPCAST)
    g, c = tl.arange(0, padded(GROUP)), tl.arange(0, CLUSTERS)
    dv = tl.arange(0, padded(VALUE_DIM))
    real = (g < GROUP)[:, None]
    best = tl.full([padded(GROUP)], float("-inf"), tl.float32)
    total = tl.zeros([padded(GROUP)], tl.float32)
    out = tl.zeros([padded(GROUP, 16), padded(VALUE_DIM)], tl.float32)
    last = tl.where(begin < end, tl.minimum(segments, tl.cdiv(end, SEGMENT)), 0)
    for segment in range(begin // SEGMENT + part, last, REST):
        record = tl.load(records + segment).to(tl.int64)
        if record >= 0:
            first = segment * SEGMENT
            mask = tl.load(opened + segment)
            step = scales + record * stride_scale_record
            where = values + record * stride_value_record + c[:, None] * VALUE_DIM + dv[None, :]
            means = tl.load(where, mask=(dv < VALUE_DIM)[None, :], other=0).to(cut[0].dtype)
            of_values = tl.load(step + CLUSTERS + c)
            left = tl.load(counts + segment * CLUSTERS + c)
            if (mask != 0) | (among_opened == 0):
                left = tl.zeros([CLUSTERS], tl.int32)
                centroid = centroid_logits(logits, segment, width, GROUP)
                high = tl.load(cluster_ends + record * stride_end_record + c).to(tl.int32)
                low = tl.load(
                    cluster_ends + record * stride_end_record + c - 1, mask=c > 0, other=0
                ).to(tl.int32)
                for start in range(0, SEGMENT, RUN):
                    i = start + tl.arange(0, RUN)
                    token = first + tl.load(places + record * stride_place_record + i).to(tl.int32)
                    inside = (token >= begin) & (token < end)
                    unread = inside & (tl.load(read + token // own, mask=inside, other=1) == 0)
                    cluster = clusters_of(cluster_ends + record * stride_end_record, i)
                    among = ((mask >> cluster) & 1) != 0
                    left += tl.histogram(cluster, CLUSTERS, mask=unread & (among == 0))
                    logit = looked_up(
                        cut, centroid, cluster, codes + record * stride_code_record,
                        codebooks + record * stride_book_record, step + 2 * CLUSTERS, i, scale,
                        GROUP, DIM, SUBSPACES, SEGMENT,
                    )  # fmt: skip
                    best, weight, decay = raised(
                        best, logit + by_code, real & (unread & among)[None, :]
                    )
                    sums = by_cluster(weight, low, high, start, GROUP, RUN)
                    out, total = added(out, total, decay, sums, means, of_values, GROUP)
            where = logits + g[:, None] * width + segment * CLUSTERS + c[None, :]
            shut = real & (left > 0)[None, :] & (((mask >> c) & 1) == 0)[None, :]
            logit = tl.load(where, mask=shut, other=0.0) + by_centroid
            logit += tl.log(tl.maximum(left, 1).to(tl.float32))[None, :]
            best, weight, decay = raised(best, logit, shut)
            out, total = added(out, total, decay, weight, means, of_values, GROUP)
    there = total > 0
    share = tl.where(there, best * LOG2E + tl.log2(tl.where(there, total, 1.0)), float("-inf"))
    out = out / taller(tl.where(there, total, 1.0), GROUP)[:, None]
    place = pair * (SPLITS + REST) + SPLITS + part
    tl.store(part_lse + place * GROUP + g, share, mask=g < GROUP)
    tall = tl.arange(0, padded(GROUP, 16))[:, None]
    where = parts + (place * GROUP + tall) * VALUE_DIM + dv[None, :]
    tl.store(where, out, mask=(tall < GROUP) & (dv < VALUE_DIM)[None, :])
