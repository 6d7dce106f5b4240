"""Records of clusters, codes of what is left of keys, and values of clusters, of all layers.

Four launches, as `segments.residual` says it: `index` finds clusters; `describe_kernel` writes
them in 8 bits, the order of tokens by cluster and the mean values; `index` codes what is left of
each key; `pack_kernel` writes these codes in that order, two in a byte, and their codebooks in 8
bits. One program of the two here owns one (segment, KV head). What is handed on lies by job, for a
few segments at a time.
"""

from collections.abc import Mapping

import torch

import triton
import triton.language as tl
from sgl_sparsekv.summaries import ResidualSummary

from .index import CodeIndexing, index_segments, jobs_by_skip
from .kmeans import block_of, sum_members
from .primitives import padded

TOGETHER = 16
"""Segments of one round: their programs fill a GPU, and what is handed on stays small."""
TOKENS = 32
"""Of a tile."""
ROUND = tl.constexpr(12582912.0)
"""Added and taken off, it rounds what is below 2^22 to the nearest integer, ties to even."""


@triton.jit
def quantised(x, scale):
    """Int8 of float32 x in units of scale; 0 where that is."""
    whole = tl.div_rn(x, tl.where(scale > 0, scale, 1.0))
    return ((whole + ROUND) - ROUND).to(tl.int8)


@triton.jit
def write_order(labels, places, ends, SIZE: tl.constexpr, TILE: tl.constexpr):
    """Tokens in the order of their 16 clusters, and where each of these ends."""
    sizes = tl.zeros([16], tl.int32)
    for start in range(0, SIZE, TILE):
        t = start + tl.arange(0, TILE)
        label = tl.load(labels + t, mask=t < SIZE, other=0).to(tl.int32)
        sizes += tl.histogram(label, 16, mask=t < SIZE)
    end = tl.cumsum(sizes, 0)
    tl.store(ends + tl.arange(0, 16), end.to(tl.int16))
    before = end - sizes
    for start in range(0, SIZE, TILE):
        t = start + tl.arange(0, TILE)
        label = tl.load(labels + t, mask=t < SIZE, other=0).to(tl.int32)
        earlier = (t[None, :] < t[:, None]) & (label[None, :] == label[:, None])
        place = block_of(before, label) + tl.sum(earlier.to(tl.int32), 1)
        tl.store(places + place, t.to(tl.int16), mask=t < SIZE)
        before += tl.histogram(label, 16, mask=t < SIZE)


@triton.jit
def write_labels(labels, packed, SIZE: tl.constexpr, TILE: tl.constexpr):
    """Labels of tokens, two in a byte."""
    for start in range(0, SIZE // 2, TILE):
        i = start + tl.arange(0, TILE)
        low = tl.load(labels + 2 * i, mask=i < SIZE // 2, other=0)
        high = tl.load(labels + 2 * i + 1, mask=i < SIZE // 2, other=0)
        tl.store(packed + i, low | (high << 4), mask=i < SIZE // 2)


@triton.jit(do_not_specialize=["skip", "records"])
def describe_kernel(
    value_pointers, slots, jobs, found, means, labels, places, ends, centroids, values, scales,
    skip, records, stride_row, stride_slot, stride_head,
    PARTS: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    SPLIT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write what records say of clusters; grid `[H, n, layers]`.

    Args:
        value_pointers, slots, jobs, skip: as of `index_kernel`; addresses are those of V.
        found, means: labels uint8 `[layers, n, H, SIZE]` and centroids `[layers, n, H, 16, DIM]`.
        labels, places, ends, centroids, values, scales: `ResidualIndex`'s, `[layers, records, H,
            ...]`; the scales of codebooks are not written.
    """
    head, job = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    record = tl.load(jobs + job * 3 + 2)
    if record < 0:
        return
    row, nth = tl.load(jobs + job * 3).to(tl.int64), tl.load(jobs + job * 3 + 1)
    first = tl.where(nth == 0, skip, 0)
    heads = tl.num_programs(0)
    to = (layer * records + record) * heads + head
    at = (layer * tl.num_programs(1) + job) * heads + head
    found += at * SIZE
    write_order(found, places + to * SIZE, ends + to * 16, SIZE, TILE)
    write_labels(found, labels + to * (SIZE // 2), SIZE, TILE)
    c, d = tl.arange(0, 16), tl.arange(0, padded(DIM, 16))[None, :]
    mask = tl.broadcast_to(d < DIM, [16, padded(DIM, 16)])
    x = tl.load(means + (at * 16 + c[:, None]) * DIM + d, mask=mask, other=0.0).to(tl.float32)
    scales += to * (32 + PARTS)
    scale = tl.div_rn(tl.max(tl.abs(x), 1), 127.0)
    tl.store(scales + c, scale)
    where = centroids + to * DIM * 16 + d * 16 + c[:, None]
    tl.store(where, quantised(x, scale[:, None]), mask=mask)
    kind = means.dtype.element_ty
    cache = tl.load(value_pointers + layer).to(tl.pointer_type(kind))
    cache = tl.multiple_of(cache, 16) + head * stride_head
    source = (cache, slots + row * stride_row + nth * SIZE, stride_slot, found, found, found)
    sums, sizes = sum_members(
        source, found, c, SIZE, 1.0, first, 0.0, False, SIZE, VALUE_DIM, False, TILE, SPLIT
    )
    x = tl.div_rn(sums, tl.maximum(sizes, 1).to(tl.float32)[:, None])
    scale = tl.div_rn(tl.max(tl.abs(x), 1), 127.0)
    tl.store(scales + 16 + c, scale)
    d = tl.arange(0, padded(VALUE_DIM, 16))[None, :]
    where = values + (to * 16 + c[:, None]) * VALUE_DIM + d
    tl.store(where, quantised(x, scale[:, None]), mask=d < VALUE_DIM)


@triton.jit(do_not_specialize=["records"])
def pack_kernel(
    jobs, found, books, places, codes, codebooks, scales, records,
    PARTS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write what records say of what is left of keys; grid `[H, n, layers]`.

    Args:
        found, books: codes uint8 `[layers, n, H, PARTS, SIZE]` and codebooks `[layers, n, H, PARTS,
            16, WIDTH]`.
        places, codes, codebooks, scales: as of `describe_kernel`; the first is read.
    """
    head, job = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    record = tl.load(jobs + job * 3 + 2)
    if record < 0:
        return
    heads = tl.num_programs(0)
    to = (layer * records + record) * heads + head
    at = ((layer * tl.num_programs(1) + job) * heads + head) * PARTS
    for start in range(0, SIZE, TILE):
        i = start + tl.arange(0, TILE)
        t = tl.load(places + to * SIZE + i, mask=i < SIZE, other=0).to(tl.int32)
        for pair in tl.static_range((PARTS + 1) // 2):
            both = tl.load(found + (at + 2 * pair) * SIZE + t, mask=i < SIZE, other=0)
            if 2 * pair + 1 < PARTS:
                high = tl.load(found + (at + 2 * pair + 1) * SIZE + t, mask=i < SIZE, other=0)
                both |= high << 4
            where = codes + (to * ((PARTS + 1) // 2) + pair) * SIZE + i
            tl.store(where, both, mask=i < SIZE)
    c, d = tl.arange(0, 16)[:, None], tl.arange(0, padded(WIDTH, 16))[None, :]
    for part in range(PARTS):
        where = books + ((at + part) * 16 + c) * WIDTH + d
        x = tl.load(where, mask=d < WIDTH, other=0.0).to(tl.float32)
        scale = tl.div_rn(tl.max(tl.max(tl.abs(x), 1), 0), 127.0)
        tl.store(scales + to * (32 + PARTS) + 32 + part, scale)
        where = codebooks + ((to * PARTS + part) * WIDTH + d) * 16 + c
        tl.store(where, quantised(x, scale), mask=d < WIDTH)


def residual_segments(
    summary: ResidualSummary,
    cache_like: tuple[torch.Tensor, torch.Tensor],
    pointers: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    jobs: torch.Tensor,
    into: Mapping[str, torch.Tensor],
    skip: int,
) -> None:
    """Write the records of whole segments in every layer.

    Args:
        summary: what to compute.
        cache_like: K and V of one layer; the others have their strides and their type.
        pointers: int64 `[layers]`, addresses of K and of V of all layers.
        slots, jobs, skip: as of `index_segments`.
        into: the arrays of `ResidualSummary.shapes`, each `[layers, records, H, ...]`.
    """
    for begin in range(0, len(jobs), TOGETHER):
        _write_some(summary, cache_like, pointers, slots, jobs[begin:][:TOGETHER], into, skip)


def _write_some(
    summary: ResidualSummary,
    cache_like: tuple[torch.Tensor, torch.Tensor],
    pointers: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    jobs: torch.Tensor,
    into: Mapping[str, torch.Tensor],
    skip: int,
) -> None:
    (keys, values), size, parts = cache_like, summary.segment_size, summary.subspaces
    heads, dim, records = keys.shape[1], keys.shape[2], into["codes"].shape[1]
    assert all(array.is_contiguous() for array in into.values())
    shape = (len(pointers[0]), len(jobs), heads)
    labels = torch.empty(*shape, 1, size, dtype=torch.uint8, device=keys.device)
    means = keys.new_empty(*shape, 1, 16, dim)
    at = torch.arange(len(jobs), dtype=jobs.dtype, device=jobs.device)
    here = torch.cat((jobs[:, :2], torch.where(jobs[:, 2] < 0, jobs[:, 2], at)[:, None]), 1)
    index_segments(summary.learned[0], keys, pointers[0], slots, here, labels, means, skip)
    grid = (heads, len(jobs), shape[0])
    describe_kernel[grid](
        pointers[1], slots, jobs, labels, means, into["labels"], into["places"], into["ends"],
        into["centroids"], into["values"], into["scales"], skip, records, slots.stride(0),
        *values.stride()[:2], PARTS=parts, SIZE=size, DIM=dim, VALUE_DIM=values.shape[2],
        SPLIT=keys.dtype.itemsize == 2, TILE=TOKENS,
    )  # fmt: skip
    codes = torch.empty(*shape, parts, size, dtype=torch.uint8, device=keys.device)
    books = keys.new_empty(*shape, parts, 16, dim // parts)
    less = (labels, into["centroids"], into["scales"])
    index_segments(summary.learned[1], keys, pointers[0], slots, jobs, codes, books, skip, less)
    pack_kernel[grid](
        jobs, codes, books, into["places"], into["codes"], into["codebooks"], into["scales"],
        records, PARTS=parts, SIZE=size, WIDTH=dim // parts, TILE=TOKENS,
    )  # fmt: skip


class SegmentIndexing(CodeIndexing):
    """What builds records of `SegmentOps`, one layer at a time."""

    def index_residuals(
        self,
        summary: ResidualSummary,
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        skips: torch.Tensor,
        into: Mapping[str, torch.Tensor],
        records: torch.Tensor,
    ) -> None:
        """See `Ops.index_residuals`; launches for each number of tokens that are skipped."""
        device = cache[0].device
        keys, values = (torch.tensor([x.data_ptr()], device=device) for x in cache)
        layers = {name: array[None] for name, array in into.items()}
        for skip, jobs in jobs_by_skip(skips.to(device), records.to(device)):
            how = (slots.int().contiguous(), jobs, layers, skip)
            residual_segments(summary, cache, (keys, values), *how)
