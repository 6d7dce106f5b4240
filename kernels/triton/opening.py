"""Which clusters of a row are looked into: the best ones, until they hold so many candidates.

A cluster's rank is the share that a token at its centroid would have among all tokens with a
record. One program of each (row, KV head) finds the rank of the cluster with which enough is open,
bit by bit: how much is held by clusters of a higher rank is a sum, in a fixed order. Of equals
those first in the sequence are opened.
"""

import triton
import triton.language as tl

from .clusters import CLUSTERS, tokens_of
from .primitives import padded, share_of, take_turn
from .select import reduced_share, sortable

RANKED = tl.constexpr(256)
"""Clusters whose logits of a whole group are looked at together."""


@triton.jit
def sizes_of(counts, records, c, total):
    """Candidates of clusters `c`; 0 where their segment has no record."""
    known = tl.load(records + c // CLUSTERS, mask=c < total, other=-1) >= 0
    return tl.load(counts + c, mask=known, other=0)


@triton.jit
def lse_of_sizes(logits, counts, records, total, width, GROUP: tl.constexpr):
    """Log-sum-exp `[padded GROUP]` over tokens at their centroids."""
    g = tl.arange(0, padded(GROUP))
    highest = tl.full([padded(GROUP)], float("-inf"), tl.float32)
    mass = tl.zeros([padded(GROUP)], tl.float32)
    for first in range(0, total, RANKED):
        c = first + tl.arange(0, RANKED)
        size = sizes_of(counts, records, c, total)
        there = (g < GROUP)[:, None] & (size > 0)[None, :]
        logit = tl.load(logits + g[:, None] * width + c, mask=there, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(logit, 1))
        some = tl.where(there, size[None, :] * share_of(logit, higher[:, None]), 0.0)
        mass = mass * share_of(highest, higher) + tl.sum(some, 1)
        highest = higher
    return tl.where(g < GROUP, highest + tl.log(mass), 0.0)


@triton.jit
def rank_clusters(
    logits, counts, records, keys, total, width, GROUP: tl.constexpr, MEAN: tl.constexpr
):
    """Write the rank of each cluster as an integer of the same order."""
    whole = lse_of_sizes(logits, counts, records, total, width, GROUP)
    g = tl.arange(0, padded(GROUP))
    for first in range(0, total, RANKED):
        c = first + tl.arange(0, RANKED)
        there = (g < GROUP)[:, None] & (sizes_of(counts, records, c, total) > 0)[None, :]
        logit = tl.load(logits + g[:, None] * width + c, mask=there, other=float("-inf"))
        rank = reduced_share(logit - whole[:, None], there, MEAN, GROUP)
        tl.store(keys + c, sortable(rank).to(tl.int32, bitcast=True), mask=c < total)


@triton.jit
def held_from(keys, counts, records, total, least, BLOCK: tl.constexpr):
    """Candidates of clusters that rank `least` or higher."""
    held = tl.zeros([], tl.int32)
    for first in range(0, total, BLOCK):
        c = first + tl.arange(0, BLOCK)
        key = tl.load(keys + c, mask=c < total, other=0).to(tl.uint32, bitcast=True)
        held += tl.sum(tl.where(key >= least, sizes_of(counts, records, c, total), 0))
    return held


@triton.jit
def lowest_rank(keys, counts, records, total, reach, BLOCK: tl.constexpr, ONE: tl.constexpr):
    """The highest rank from which on clusters hold `reach` candidates; 0: all do not."""
    least = tl.zeros([], tl.uint32)
    c = tl.arange(0, BLOCK)
    if ONE:
        key = tl.load(keys + c, mask=c < total, other=0).to(tl.uint32, bitcast=True)
        size = sizes_of(counts, records, c, total)
    for bit in range(32):
        mark = least | (tl.full([], 0x80000000, tl.uint32) >> bit)
        if ONE:
            held = tl.sum(tl.where(key >= mark, size, 0))
        else:
            held = held_from(keys, counts, records, total, mark, BLOCK)
        least = tl.where(held >= reach, mark, least)
    return least


@triton.jit(do_not_specialize=["layer", "segments"])
def open_kernel(
    logits,
    counts,
    records,
    reaches,
    begins,
    ends,
    finers,
    dense_layers,
    keys,
    opened,
    layer,
    segments,
    width,
    stride_records,
    stride_opened,
    GROUP: tl.constexpr,
    MEAN: tl.constexpr,
    UNIT: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Open clusters of one row and KV head. Grid `[rows, H]`.

    Args:
        logits, counts, records, reaches, begins, ends, finers, dense_layers: see
            `clusters_kernel`, of the same rows.
        keys: int32 `[rows, H, width]`, for this launch's own use.
        opened: int32 `[rows, H, stride_opened]`, by segment: bit c of those that have a record and
            begin in front of the last candidate's end.
        MEAN: reduction over the group by mean, else by maximum.
        BLOCK: clusters at a time; all of them if ONE.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = row * tl.num_programs(1) + head
    begin, end = tokens_of(begins, ends, finers, row, UNIT)
    reach = tl.load(reaches + row)
    if (reach <= 0) | (layer < tl.load(dense_layers + row)) | (begin >= end):
        return
    total = tl.minimum(segments, tl.cdiv(end, SEGMENT)) * CLUSTERS
    logits += pair * GROUP * width
    counts += pair * width
    keys += pair * width
    opened += pair * stride_opened
    records += row * stride_records
    rank_clusters(logits, counts, records, keys, total, width, GROUP, MEAN)
    tl.debug_barrier()
    least = lowest_rank(keys, counts, records, total, reach, BLOCK, ONE)
    room = reach
    if least < 0xFFFFFFFF:
        room -= held_from(keys, counts, records, total, least + 1, BLOCK)
    for first in range(0, total, BLOCK):
        c = first + tl.arange(0, BLOCK)
        key = tl.load(keys + c, mask=c < total, other=0).to(tl.uint32, bitcast=True)
        size = sizes_of(counts, records, c, total)
        equal = tl.where(key == least, size, 0)
        among = (key > least) | ((key == least) & (tl.cumsum(equal) - equal < room))
        bits = tl.where(among & (size > 0), 1 << (c % CLUSTERS), 0)
        masks = tl.sum(tl.reshape(bits, [BLOCK // 16, 16]), 1)
        segment = first // CLUSTERS + tl.arange(0, BLOCK // 16)
        tl.store(opened + segment, masks, mask=segment * CLUSTERS < total)
        room -= tl.sum(equal)
