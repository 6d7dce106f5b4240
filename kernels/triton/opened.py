"""Ranks of tokens of open clusters by their codes, in two launches over the same walk.

As `codes`, where clusters are looked at first: of shut ones nothing is read. Each of their tokens
counts, in the softmax over all candidates, as if it were its centroid, and none has a rank.

    parts   maximum and sum of exponentials of every segment, and of blocks without a record
    ranks   reduced softmax of tokens of open clusters and of those without a record

Grid `[rows, H, chunks]`. A program takes every `chunks`-th segment, and every `chunks`-th block
without a record.
"""

import triton
import triton.language as tl

from .clusters import CLUSTERS
from .codes import key_logits, leave, load_parts
from .looked_up import centroid_logits, clusters_of, looked_up
from .primitives import load_group, padded, share_of, take_turn
from .select import normalisers, reduced_share


@triton.jit
def shut_part(logits, counts, segment, shut, width, GROUP: tl.constexpr):
    """Maximum and sum `[padded GROUP]` over candidates of shut clusters of a segment."""
    g, c = tl.arange(0, padded(GROUP)), tl.arange(0, CLUSTERS)
    place = segment * CLUSTERS + c
    size = tl.load(counts + place) * ((shut >> c) & 1)
    there = (g < GROUP)[:, None] & (size > 0)[None, :]
    logit = tl.load(logits + g[:, None] * width + place[None, :], mask=there, other=float("-inf"))
    best = tl.max(logit, 1)
    sums = tl.where(there, size[None, :] * share_of(logit, best[:, None]), 0.0)
    return best, tl.sum(sums, 1)


@triton.jit
def leave_part(
    best, total, first, begin, end, parts,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What a whole segment says stands at its first block with candidates; the others say nothing.

    Args:
        best, total: `[padded GROUP]`.
        first: token of the segment.
        parts: of the row and KV head, see `codes_kernel`.
    """
    g, block = tl.arange(0, padded(GROUP)), tl.arange(0, padded(SEGMENT // BLOCK))
    start = first + block * BLOCK
    there = (block < SEGMENT // BLOCK) & (start < end) & (start + BLOCK > begin)
    speaks = (start <= tl.maximum(first, begin)) & (start + BLOCK > tl.maximum(first, begin))
    part = parts + (start // BLOCK)[None, :] * 2 * GROUP + g[:, None]
    mask = (g < GROUP)[:, None] & there[None, :]
    tl.store(part, tl.where(speaks[None, :], best[:, None], float("-inf")), mask=mask)
    tl.store(part + GROUP, tl.where(speaks[None, :], total[:, None], 0.0), mask=mask)


@triton.jit(do_not_specialize=["layer", "chunks", "blocks", "segments"])
def opened_kernel(
    q,
    keys,
    codes,
    codebooks,
    scales,
    places,
    cluster_ends,
    table,
    records,
    opened,
    logits,
    counts,
    formulas,
    begins,
    ends,
    dense_layers,
    parts,
    ranks,
    scale,
    layer,
    chunks,
    blocks,
    width,
    ranked,
    segments,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_slot,
    stride_key_head,
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
    stride_table,
    stride_records,
    stride_opened,
    RANKS: tl.constexpr,
    MEAN: tl.constexpr,
    RESIDUALS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SUBSPACES: tl.constexpr,
    SEGMENT: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """A share of the candidates of one row and KV head: their parts, or when RANKS their ranks.

    Args:
        q, keys, table, parts, ranks: see `codes_kernel`; `[rows, H, ranked]` the last.
        codes: uint8 `[records, H, (m + 1) // 2, S]`; codebooks: int8 `[records, H, m, D / m, 16]`.
        scales, places, cluster_ends, records, logits, counts: see `clusters_kernel`.
        opened: see `open_kernel`.
        formulas, begins, ends, dense_layers: int32 `[rows]`; candidates are tokens here. Rows
            with another formula than RESIDUALS, or dense in this layer, are left alone.
        RUN: places that are looked up at a time; divides SEGMENT, and BLOCK divides it.
        PARTS: blocks whose sums are added at a time.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    pair = row * tl.num_programs(1) + head
    begin, end = tl.load(begins + row), tl.load(ends + row)
    asked = (tl.load(formulas + row) == RESIDUALS) & (layer >= tl.load(dense_layers + row))
    if (asked == 0) | (begin >= end):
        return
    q += row * stride_q_row + head * stride_q_head
    keys += head * stride_key_head
    codes += head * stride_code_head
    codebooks += head * stride_book_head
    scales += head * stride_scale_head + 2 * CLUSTERS
    places += head * stride_place_head
    cluster_ends += head * stride_end_head
    table += row * stride_table
    records += row * stride_records
    opened += pair * stride_opened
    logits += pair * GROUP * width
    counts += pair * width
    parts += pair * blocks * 2 * GROUP
    ranks += pair * ranked
    g = tl.arange(0, padded(GROUP))
    whole = tl.zeros([padded(GROUP)], tl.float32)
    if RANKS:
        whole = normalisers(parts, begin, end, g, BLOCK, GROUP, PARTS)
    queries = load_group(q, stride_q_group, GROUP, DIM, UPCAST)
    for block in range(begin // BLOCK + chunk, tl.cdiv(end, BLOCK), chunks):
        segment = block * BLOCK // SEGMENT
        if tl.load(records + segment, mask=segment < segments, other=-1) < 0:
            logit = key_logits(
                queries, keys, table, block * BLOCK, begin, end, scale, stride_slot,
                GROUP, DIM, UNIT, BLOCK, UPCAST,
            )  # fmt: skip
            leave(
                logit, block * BLOCK, True, begin, end, whole, parts, ranks, MEAN,
                RANKS, BLOCK, GROUP,
            )  # fmt: skip
    cut = load_parts(q, stride_q_group, GROUP, DIM, SUBSPACES, UPCAST)
    real = tl.broadcast_to((g < GROUP)[:, None], [padded(GROUP), RUN])
    last = tl.minimum(segments, tl.cdiv(end, SEGMENT))
    for segment in range(begin // SEGMENT + chunk, last, chunks):
        record = tl.load(records + segment).to(tl.int64)
        if record >= 0:
            first = segment * SEGMENT
            mask = tl.load(opened + segment)
            best, total = shut_part(logits, counts, segment, ~mask, width, GROUP)
            centroid = centroid_logits(logits, segment, width, GROUP)
            for start in range(0, SEGMENT, RUN):
                i = start + tl.arange(0, RUN)
                token = first + tl.load(places + record * stride_place_record + i).to(tl.int32)
                inside = (token >= begin) & (token < end)
                rank = tl.full([RUN], float("-inf"), tl.float32)
                if mask != 0:
                    cluster = clusters_of(cluster_ends + record * stride_end_record, i)
                    among = ((mask >> cluster) & 1) != 0
                    logit = looked_up(
                        cut, centroid, cluster, codes + record * stride_code_record,
                        codebooks + record * stride_book_record,
                        scales + record * stride_scale_record, i, scale,
                        GROUP, DIM, SUBSPACES, SEGMENT,
                    )  # fmt: skip
                    if RANKS:
                        rank = reduced_share(logit - whole[:, None], real, MEAN, GROUP)
                        rank = tl.where(among, rank, float("-inf"))
                    else:
                        there = real & (among & inside)[None, :]
                        logit = tl.where(there, logit, float("-inf"))
                        higher = tl.maximum(best, tl.max(logit, 1))
                        some = tl.where(there, share_of(logit, higher[:, None]), 0.0)
                        total = total * share_of(best, higher) + tl.sum(some, 1)
                        best = higher
                if RANKS:
                    tl.store(ranks + token, rank, mask=inside)
            if not RANKS:
                leave_part(best, total, first, begin, end, parts, SEGMENT, BLOCK, GROUP)
