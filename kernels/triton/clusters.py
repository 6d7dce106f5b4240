"""What clusters of segments are worth, and how many candidates each has.

`residual_pq` looks at these first, and so does an estimate of what is not read.

Grid `[rows, H, chunks]`. A program takes every `chunks`-th block of segments, whose centroids are
multiplied at once. Their integers are exact in 16 bits, so scales are applied to products. Of a
segment between sinks and window all tokens are candidates, and its clusters' bounds tell how many
they are. Places of tokens are read in the segments of the first and the last candidate alone.
"""

import triton
import triton.language as tl

from .primitives import load_group, padded, take_turn

CLUSTERS = tl.constexpr(16)
"""Of a segment."""


@triton.jit
def tokens_of(begins, ends, finers, row, UNIT: tl.constexpr):
    """First and one past the last candidate of a row, in tokens."""
    own = UNIT >> tl.load(finers + row)
    return tl.load(begins + row) * own, tl.load(ends + row) * own


@triton.jit
def bounds(ends, c, there):
    """First and one past the last token of clusters `c`, in the order of a record: int32."""
    low = tl.load(ends + c - 1, mask=there & (c > 0), other=0)
    return low.to(tl.int32), tl.load(ends + c, mask=there, other=0).to(tl.int32)


@triton.jit
def centroid_rows(centroids, record, stride_record, there, DIM: tl.constexpr):
    """Centroids int8 `[padded DIM, 16 segments]` of several records; 0 where there is none."""
    c, d = tl.arange(0, CLUSTERS)[None, None, :], tl.arange(0, padded(DIM))[:, None, None]
    where = centroids + record[None, :, None] * stride_record + d * CLUSTERS + c
    rows = tl.load(where, mask=there[None, :, None] & (d < DIM) & (c < CLUSTERS), other=0)
    return tl.reshape(rows, [padded(DIM), record.shape[0] * CLUSTERS])


@triton.jit
def count_places(places, ends, first, begin, end, SEGMENT: tl.constexpr, TOKENS: tl.constexpr):
    """Candidates of each cluster of the segment that begins at token `first`: int32 `[16]`."""
    low, high = bounds(ends, tl.arange(0, CLUSTERS), True)
    found = tl.zeros([CLUSTERS], tl.int32)
    for start in range(0, SEGMENT, TOKENS):
        i = start + tl.arange(0, TOKENS)
        token = first + tl.load(places + i).to(tl.int32)
        inside = (token >= begin) & (token < end)
        of_cluster = (i >= low[:, None]) & (i < high[:, None]) & inside
        found += tl.sum(of_cluster.to(tl.int32), 1)
    return found


@triton.jit(do_not_specialize=["layer", "chunks", "segments"])
def clusters_kernel(
    q,
    centroids,
    scales,
    places,
    cluster_ends,
    records,
    reaches,
    begins,
    ends,
    finers,
    dense_layers,
    logits,
    counts,
    scale,
    layer,
    chunks,
    segments,
    width,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_centroid_record,
    stride_centroid_head,
    stride_scale_record,
    stride_scale_head,
    stride_place_record,
    stride_place_head,
    stride_end_record,
    stride_end_head,
    stride_records,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    UPCAST: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Logits of centroids and candidates of clusters, of the segments that have a record.

    Args:
        q: `[rows, H, G, D]`.
        centroids: int8 `[records, H, D, 16]`; scales: float32 `[records, H, 32 + m]`.
        places: int16 `[records, H, S]`; cluster_ends: int16 `[records, H, 16]`.
        records: int32 `[rows, stride_records]`, negative for none. Of `segments` in a row those
            are read that begin in front of the last candidate's end.
        reaches: int32 `[rows]`, candidates that open clusters are to hold. Rows with 0, or dense in
            this layer, are left alone.
        begins, ends, finers, dense_layers: int32 `[rows]`, candidates being units of [begin, end),
            of which UNIT tokens are 2^finer.
        logits: float32 `[rows, H, G, width]`, 16 in turn for each segment, scaled.
        counts: int32 `[rows, H, width]`.
        BLOCK: segments at a time; TOKENS: places, a divisor of SEGMENT.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    pair = row * tl.num_programs(1) + head
    begin, end = tokens_of(begins, ends, finers, row, UNIT)
    looks = (tl.load(reaches + row) > 0) & (layer >= tl.load(dense_layers + row))
    if (looks == 0) | (begin >= end):
        return
    centroids += head * stride_centroid_head
    scales += head * stride_scale_head
    places += head * stride_place_head
    cluster_ends += head * stride_end_head
    records += row * stride_records
    logits += pair * GROUP * width
    counts += pair * width
    queries = load_group(
        q + row * stride_q_row + head * stride_q_head, stride_q_group, GROUP, DIM, UPCAST
    )
    g, c = tl.arange(0, padded(GROUP, 16)), tl.arange(0, CLUSTERS)[None, :]
    last = tl.minimum(segments, tl.cdiv(end, SEGMENT))
    for block in range(chunk, tl.cdiv(last, BLOCK), chunks):
        segment = block * BLOCK + tl.arange(0, BLOCK)
        record = tl.load(records + segment, mask=segment < last, other=-1).to(tl.int64)
        rows = centroid_rows(centroids, record, stride_centroid_record, record >= 0, DIM)
        dot = tl.dot(queries, rows.to(queries.dtype), input_precision="ieee")
        known = (record >= 0)[:, None] & (c < CLUSTERS)
        step = tl.load(scales + record[:, None] * stride_scale_record + c, mask=known, other=0.0)
        logit = scale * (dot * tl.reshape(step, [1, BLOCK * CLUSTERS]))
        place = segment[:, None] * CLUSTERS + c
        there = tl.reshape(known, [1, BLOCK * CLUSTERS]) & (g < GROUP)[:, None]
        where = g[:, None] * width + tl.reshape(place, [1, BLOCK * CLUSTERS])
        tl.store(logits + where, logit, mask=there)
        low, high = bounds(cluster_ends + record[:, None] * stride_end_record, c, known)
        first = segment * SEGMENT
        whole = (first >= begin) & (first + SEGMENT <= end)
        clear = whole | (first + SEGMENT <= begin)
        count = tl.where(whole[:, None], high - low, 0)
        tl.store(counts + place, count, mask=known & clear[:, None])
    for edge in range(2):
        segment = tl.where(edge == 0, begin, end - 1) // SEGMENT
        mine = (segment // BLOCK % chunks == chunk) & ((edge == 0) | (segment > begin // SEGMENT))
        first = segment * SEGMENT
        if mine & (segment < last) & ((first < begin) | (first + SEGMENT > end)):
            record = tl.load(records + segment).to(tl.int64)
            if record >= 0:
                own = cluster_ends + record * stride_end_record
                found = count_places(
                    places + record * stride_place_record, own, first, begin, end, SEGMENT, TOKENS
                )
                tl.store(counts + segment * CLUSTERS + tl.arange(0, CLUSTERS), found)
