"""Codes of whole segments: k-means of the keys of each (segment, KV head, sub-vector).

Grid `[H * m, jobs, layers]`: one program owns one set of S points and works in a fixed order, so a
record is the same bits in any company. It walks the points in tiles of tokens, and the centroids in
blocks. What lives from one iteration to the next is the label of each token, in `codes`, and for
each centroid either a token that it lies on or "the mean of its members": so a block of centroids
is summed up when it is needed, is matched with all tokens, and is forgotten again. An iteration
reads the keys twice for each block, mostly from L2, and any number of centroids fits.

It is the k-means of `sgl_sparsekv.segments.lloyd` in float32. Points are brought below 1 by a power
of two, so that no square overflows. Keys of 16 bits are exact in TF32; what they are multiplied
with is cut into two such parts, which have 22 bits together and run on matrix units. Keys of 32
bits are multiplied as they are.
"""

from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.summaries import CodeSummary

from .primitives import padded

QUIET = tl.constexpr(2.0**-12)
"""Square of `segments.clusters.QUIET`."""


@dataclass(frozen=True)
class IndexTuning:
    """Shapes of one program; not measured on a GPU yet.

    Attributes:
        tokens: of a tile. 64 rows fill a matrix product of four warps.
        codes: centroids of a block; with these, sums and a tile of points stay in registers.
        warps: per program.
    """

    tokens: int = 64
    codes: int = 32
    warps: int = 4


def index_tuning(width: int, segment_size: int) -> IndexTuning:
    """Shapes for points of so many channels."""
    if width > 128 or segment_size > 1024:  # twice the registers of a tile, or of a segment
        return IndexTuning(warps=8)
    return IndexTuning()


@triton.jit
def coarse(x):
    """The leading 11 bits of each number: what TF32 keeps."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def similarity(x, centroids, SPLIT: tl.constexpr):
    """Points `[n, W]`, centroids `[k, W]` -> inner products `[n, k]`."""
    if SPLIT:
        big = coarse(centroids)
        fine = tl.dot(x, tl.trans(centroids - big), input_precision="tf32")
        inner = tl.dot(x, tl.trans(big), acc=fine, input_precision="tf32")
    else:
        inner = tl.dot(x, tl.trans(centroids), input_precision="ieee")
    return inner


@triton.jit
def add_members(weights, x, sums, SPLIT: tl.constexpr, ONES: tl.constexpr):
    """Add points `[n, W]`, weighted `[k, n]`, to sums `[k, W]`; ONES: no weight but 0 and 1."""
    if SPLIT:
        big = coarse(weights)
        if not ONES:
            sums = tl.dot(weights - big, x, acc=sums, input_precision="tf32")
        sums = tl.dot(big, x, acc=sums, input_precision="tf32")
    else:
        sums = tl.dot(weights, x, acc=sums, input_precision="ieee")
    return sums


@triton.jit
def points(source, tokens, inside, scale, WIDTH: tl.constexpr, LESS: tl.constexpr):
    """Points `[n, padded WIDTH]` of some tokens of the segment, scaled; 0 where not inside.

    Args:
        source: keys of the set, slots of the segment, the keys' stride; and with LESS, which takes
            its cluster's centroid off each key, labels, int8 centroids `[W, 16]` and their scales.
    """
    keys, slots, stride, labels, centroids, scales = source
    d = tl.arange(0, padded(WIDTH, 16))
    mask = inside[:, None] & (d < WIDTH)[None, :]
    rows = tl.load(slots + tokens, mask=inside, other=0).to(tl.int64) * stride
    key = tl.load(keys + rows[:, None] + d[None, :], mask=mask, other=0.0)
    x = key.to(tl.float32)
    x = tl.where(tl.abs(x) < float("inf"), x, 0.0)  # nor is NaN below it
    if LESS:
        label = tl.load(labels + tokens, mask=inside, other=0).to(tl.int32)
        own = tl.load(centroids + d[None, :] * 16 + label[:, None], mask=mask, other=0)
        length = tl.load(scales + label, mask=inside, other=0.0)
        x = (x - own.to(tl.float32) * length[:, None]).to(key.dtype).to(tl.float32)
    return x * scale


@triton.jit
def inverse_lengths(x, limit):
    """What brings points `[n, W]` to length one; 0 for those whose square is within the limit."""
    square = tl.sum(x * x, 1)
    return tl.where(square > limit, 1.0 / tl.sqrt(square), 0.0)


@triton.jit
def power_of(
    source, SIZE: tl.constexpr, WIDTH: tl.constexpr, LESS: tl.constexpr, TILE: tl.constexpr
):
    """The power of two that brings all points below 1, and its inverse."""
    largest = tl.zeros([TILE], tl.float32)
    for start in range(0, SIZE, TILE):
        t = start + tl.arange(0, TILE)
        x = points(source, t, t < SIZE, 1.0, WIDTH, LESS)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    exponent = tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent + 1, 2), 252)
    scale = (254 - exponent) << 23
    back = exponent << 23
    return scale.to(tl.float32, bitcast=True), back.to(tl.float32, bitcast=True)


@triton.jit
def longest_square(
    source, scale, first, SIZE: tl.constexpr, WIDTH: tl.constexpr, LESS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Squared length of the longest point from `first` on."""
    longest = tl.zeros([TILE], tl.float32)
    for start in range(0, SIZE, TILE):
        t = start + tl.arange(0, TILE)
        x = points(source, t, (t >= first) & (t < SIZE), scale, WIDTH, LESS)
        longest = tl.maximum(longest, tl.sum(x * x, 1))
    return tl.max(longest, 0)


@triton.jit
def sum_members(
    source, codes, k, scale, first, limit, WEIGHTED: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, LESS: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Sums `[k, W]` of the points from `first` on that have codes k, and how many they are.

    WEIGHTED: of their directions, quiet ones being zero.
    """
    sums = tl.zeros([k.shape[0], padded(WIDTH, 16)], tl.float32)
    sizes = tl.zeros([k.shape[0]], tl.int32)
    for start in range(0, SIZE, TILE):
        t = start + tl.arange(0, TILE)
        x = points(source, t, t < SIZE, scale, WIDTH, LESS)
        code = tl.load(codes + t, mask=t < SIZE, other=0).to(tl.int32)
        member = (code[None, :] == k[:, None]) & ((t >= first) & (t < SIZE))[None, :]
        sizes += tl.sum(member.to(tl.int32), 1)
        weights = member.to(tl.float32)
        if WEIGHTED:
            weights *= inverse_lengths(x, limit)[None, :]
        sums = add_members(weights, x, sums, SPLIT, not WEIGHTED)
    return sums, sizes


@triton.jit
def centroids_of(
    source, codes, seeds, kept, k, scale, first, limit, COSINE: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, LESS: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Centroids k `[k, W]`: the token of a seed, else the mean of the members.

    Args:
        seeds: int32 `[k]`, negative: none.
        kept: what they were, which stays where the directions of members cancel.
    """
    means = kept
    if tl.min(seeds, 0) < 0:
        sums, sizes = sum_members(
            source, codes, k, scale, first, limit, COSINE, SIZE, WIDTH, LESS, TILE, SPLIT
        )
        if COSINE:
            length = inverse_lengths(sums, 0.0)[:, None]
            means = tl.where(length > 0, sums * length, kept)
        else:
            means = sums / tl.maximum(sizes, 1).to(tl.float32)[:, None]
    if tl.max(seeds, 0) >= 0:
        rows = points(source, tl.maximum(seeds, 0), seeds >= 0, scale, WIDTH, LESS)
        if COSINE:
            rows *= inverse_lengths(rows, limit)[:, None]
        means = tl.where((seeds >= 0)[:, None], rows, means)
    return means


@triton.jit
def match(
    source, centroids, k, codes, found, end, scale, limit, COSINE: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, LESS: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Match the tokens before `end` with a block of centroids, of which there are `codes` in all.

    Args:
        found: of each token `[tiles, TILE]` its similarity to the best centroid so far, which one
            that is, and half its square.
    """
    best, label, half = found
    tile = tl.arange(0, best.shape[0])[:, None]
    bias = tl.where(k < codes, 0.0, float("-inf"))
    if not COSINE:
        bias -= tl.sum(centroids * centroids, 1) / 2
    for i in range(tl.cdiv(end, TILE)):
        t = i * TILE + tl.arange(0, TILE)
        x = points(source, t, t < SIZE, scale, WIDTH, LESS)
        near = similarity(x, centroids, SPLIT)
        if COSINE:
            length = inverse_lengths(x, limit)
            near *= length[:, None]
            square = tl.where(length > 0, 0.5, 0.0)
        else:
            square = tl.sum(x * x, 1) / 2
        near += bias[None, :]
        top, nth = tl.max(near, 1, return_indices=True)
        top = tl.where(tile == i, top[None, :], float("-inf"))
        nth = tl.broadcast_to(tl.min(k, 0) + nth[None, :], best.shape)
        label = tl.where(top > best, nth, label)  # of equals the lower stays
        best = tl.maximum(best, top)
        half = tl.where(tile == i, square[None, :], half)
    return best, label, half


@triton.jit
def reseed(found, sizes, k, first, codes, SIZE: tl.constexpr):
    """Seeds `[k]`: the i-th of `codes` centroids without members gets the i-th worst point."""
    best, label, half = found
    t = tl.arange(0, best.shape[0] * best.shape[1])
    empty = ((sizes == 0) & (k < codes)).to(tl.int32)
    seeds = tl.full(k.shape, -1, tl.int32)
    count = tl.sum(empty, 0)
    if count > 0:
        nth = tl.cumsum(empty, 0) - 1
        fit = tl.reshape(best - half, t.shape)
        fit = tl.where((t >= first) & (t < SIZE), fit, float("inf"))
        for i in range(tl.minimum(count, SIZE - first)):
            worst = tl.argmin(fit, 0)
            fit = tl.where(t == worst, float("inf"), fit)
            seeds = tl.where((empty > 0) & (nth >= i), worst, seeds)
    return seeds


@triton.jit
def block_of(values, k):
    """Entries k of a vector of integers."""
    at = tl.arange(0, values.shape[0])
    return tl.sum(tl.where(at[None, :] == k[:, None], values[None, :], 0), 1)


@triton.jit
def write_codes(codes, label, first, end):
    """Write the codes of tokens from `first` to `end`; threads read what others wrote."""
    t = tl.arange(0, label.shape[0] * label.shape[1])
    tl.debug_barrier()
    code = tl.reshape(label, t.shape).to(tl.uint8)
    tl.store(codes + t, code, mask=(t >= first) & (t < end))
    tl.debug_barrier()


@triton.jit
def split_codes(
    codes, sizes, first, clusters, CAPACITY: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr
):
    """Cut clusters above the capacity; see `segments.lloyd.split`. Sizes are int32 `[k]`."""
    extra = tl.maximum(sizes - 1, 0) // CAPACITY
    free = clusters + tl.cumsum(extra, 0) - extra
    before = tl.zeros_like(sizes)
    for start in range(0, SIZE, TILE):
        t = start + tl.arange(0, TILE)
        learned = (t >= first) & (t < SIZE)
        code = tl.load(codes + t, mask=learned, other=0).to(tl.int32)
        earlier = (t[None, :] < t[:, None]) & learned[None, :] & (code[None, :] == code[:, None])
        nth = block_of(before, code) + tl.sum(earlier.to(tl.int32), 1)
        piece = nth // CAPACITY
        before += tl.histogram(code, sizes.shape[0], mask=learned)
        code = tl.where(piece > 0, block_of(free, code) + piece - 1, code)
        tl.store(codes + t, code.to(tl.uint8), mask=learned)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["skip", "records"])
def index_kernel(
    key_pointers,
    slots,
    jobs,
    codes,
    codebooks,
    labels,
    centroids,
    scales,
    skip,
    records,
    stride_row,
    stride_slot,
    stride_head,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    FITTED: tl.constexpr,
    APART: tl.constexpr,
    CAPACITY: tl.constexpr,
    COSINE: tl.constexpr,
    ITERATIONS: tl.constexpr,
    LESS: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the codes and the codebook of one set.

    Args:
        key_pointers: int64 `[layers]`, addresses of K `[slots, H, D]`, multiples of 16.
        slots: int32 `[requests, stride_row]`, slot of each position.
        jobs: int32 `[n, 3]`, request, number of the segment in it, record or negative: none.
        codes: uint8 `[layers, records, H, PARTS, SIZE]`.
        codebooks: `[layers, records, H, PARTS, CODES, WIDTH]` in the keys' type.
        labels, centroids, scales: with LESS, whose keys are what is left of them: uint8
            `[layers, n, H, SIZE]`, int8 `[layers, records, H, D, 16]` and float32 `[layers,
            records, H, 32 + PARTS]`, which begin with scales of the centroids. Else not read.
        skip: first tokens of a request not to learn from.
        FITTED: centroids of k-means. With APART quiet keys have the next code, and with CAPACITY
            the others are for what is split.
        SPLIT: keys are of 16 bits.
    """
    pair, job, layer = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    record = tl.load(jobs + job * 3 + 2).to(tl.int64)
    if record < 0:
        return
    row, nth = tl.load(jobs + job * 3).to(tl.int64), tl.load(jobs + job * 3 + 1)
    first = tl.where(nth == 0, skip, 0)
    head, part = pair // PARTS, pair % PARTS
    kind = codebooks.dtype.element_ty
    keys = tl.load(key_pointers + layer).to(tl.pointer_type(kind))
    keys = tl.multiple_of(keys, 16) + head.to(tl.int64) * stride_head + part * WIDTH
    heads = tl.num_programs(0) // PARTS
    to = layer.to(tl.int64) * records + record
    if LESS:
        labels += ((layer.to(tl.int64) * tl.num_programs(1) + job) * heads + head) * SIZE
        centroids += ((to * heads + head) * PARTS + part) * WIDTH * 16
        scales += (to * heads + head) * (32 + PARTS)
    source = (keys, slots + row * stride_row + nth * SIZE, stride_slot, labels, centroids, scales)
    to = to * tl.num_programs(0) + pair
    codes += to * SIZE
    d = tl.arange(0, padded(WIDTH, 16))[None, :]
    book = codebooks + to * (CODES * WIDTH) + d

    scale, back = power_of(source, SIZE, WIDTH, LESS, TILE)
    limit = 0.0
    if COSINE:
        limit = longest_square(source, scale, first, SIZE, WIDTH, LESS, TILE) * QUIET
    every = tl.arange(0, padded(CODES, BLOCK))
    seeds = first + tl.minimum(every, FITTED - 1) * (SIZE - first) // FITTED
    kept = tl.zeros([BLOCK, padded(WIDTH, 16)], tl.float32)
    nothing = tl.zeros([padded(tl.cdiv(SIZE, TILE)), TILE], tl.float32)
    t = tl.reshape(tl.arange(0, nothing.shape[0] * TILE), nothing.shape)
    learned = tl.reshape((t >= first) & (t < SIZE), [nothing.shape[0] * TILE])
    sizes = tl.zeros_like(every)
    best, label, half = nothing, nothing.to(tl.int32), nothing
    for _ in range(ITERATIONS + 1 if COSINE else ITERATIONS):
        best, label, half = nothing - float("inf"), nothing.to(tl.int32), nothing
        for block in range(tl.cdiv(FITTED, BLOCK)):
            k = block * BLOCK + tl.arange(0, BLOCK)
            # Those of other blocks are forgotten; only keys that cancel to the last bit tell.
            kept = tl.where(block == 0, kept, 0.0)
            means = centroids_of(
                source, codes, block_of(seeds, k), kept, k, scale, first, limit, COSINE,
                SIZE, WIDTH, LESS, TILE, SPLIT,
            )  # fmt: skip
            best, label, half = match(
                source, means, k, FITTED, (best, label, half), SIZE, scale, limit, COSINE,
                SIZE, WIDTH, LESS, TILE, SPLIT,
            )  # fmt: skip
            kept = means
        write_codes(codes, label, 0, SIZE)
        sizes = tl.histogram(tl.reshape(label, learned.shape), every.shape[0], mask=learned)
        seeds = reseed((best, label, half), sizes, every, first, FITTED, SIZE)
    if COSINE:
        if APART:
            label = tl.where(half > 0, label, FITTED)
            write_codes(codes, label, first, SIZE)
        if CAPACITY:
            sizes = tl.histogram(tl.reshape(label, learned.shape), every.shape[0], mask=learned)
            split_codes(codes, sizes, first, FITTED + APART, CAPACITY, SIZE, TILE)
    best, label, half = nothing - float("inf"), nothing.to(tl.int32), nothing
    for block in range(tl.cdiv(CODES, BLOCK)):
        k = block * BLOCK + tl.arange(0, BLOCK)
        if COSINE:
            sums, members = sum_members(
                source, codes, k, scale, first, 0.0, False, SIZE, WIDTH, LESS, TILE, SPLIT
            )
            means = tl.div_rn(sums, tl.maximum(members, 1).to(tl.float32)[:, None])
        else:
            kept = tl.where(block == 0, kept, 0.0)
            means = centroids_of(
                source, codes, block_of(seeds, k), kept, k, scale, first, limit, False,
                SIZE, WIDTH, LESS, TILE, SPLIT,
            )  # fmt: skip
        stored = (means * back).to(kind)
        tl.store(book + k[:, None] * WIDTH, stored, mask=(k < CODES)[:, None] & (d < WIDTH))
        means = stored.to(tl.float32) * scale
        if COSINE:
            means *= inverse_lengths(means, 0.0)[:, None]
        best, label, half = match(
            source, means, k, CODES, (best, label, half), first if COSINE else SIZE, scale, 0.0,
            COSINE, SIZE, WIDTH, LESS, TILE, SPLIT,
        )  # fmt: skip
    write_codes(codes, label, 0, first if COSINE else SIZE)


def index_segments(
    summary: CodeSummary,
    keys_like: torch.Tensor,
    key_pointers: torch.Tensor,
    slots: torch.Tensor,
    jobs: torch.Tensor,
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    skip: int,
) -> None:
    """Write the records of whole segments in every layer; see `index_kernel`.

    Args:
        summary: what to compute.
        keys_like: K of one layer, `[slots, H, D]`: the others have its shape, strides and type.
        key_pointers: int64 `[layers]`, the addresses of all.
    """
    launch_index(summary, keys_like, key_pointers, slots, jobs, codes, codebooks, skip)


def launch_index(
    summary: CodeSummary,
    keys_like: torch.Tensor,
    key_pointers: torch.Tensor,
    slots: torch.Tensor,
    jobs: torch.Tensor,
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    skip: int,
    less: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """`index_segments`, of keys or of what is `less` than them: labels, centroids and scales."""
    _, heads, dim = keys_like.shape
    assert codes.is_contiguous() and codebooks.is_contiguous() and jobs.is_contiguous()
    assert codebooks.dtype is keys_like.dtype and keys_like.stride(2) == slots.stride(1) == 1
    labels, centroids, scales = less or (codes, codes, codes)
    grid = (heads * summary.subspaces, len(jobs), len(key_pointers))
    constants = constants_of(summary, dim, keys_like.dtype.itemsize)
    if len(jobs):
        index_kernel[grid](
            key_pointers, slots, jobs, codes, codebooks, labels, centroids, scales,
            skip, codes.shape[1], slots.stride(0), *keys_like.stride()[:2],
            **constants, LESS=less is not None,
            num_warps=index_tuning(constants["WIDTH"], summary.segment_size).warps,
        )  # fmt: skip


def constants_of(summary: CodeSummary, dim: int, itemsize: int) -> dict[str, int]:
    """Compile-time arguments of `index_kernel` for keys of `dim` channels, but LESS."""
    size, codes = summary.segment_size, summary.codes
    pieces = size // summary.capacity if summary.capacity else 0
    apart = summary.cosine and codes - pieces > 1
    tuned = index_tuning(dim // summary.subspaces, size)
    return {
        "PARTS": summary.subspaces, "SIZE": size, "WIDTH": dim // summary.subspaces,
        "CODES": codes, "FITTED": codes - pieces - apart, "APART": apart,
        "CAPACITY": summary.capacity or 0, "COSINE": summary.cosine,
        "ITERATIONS": summary.iterations, "SPLIT": itemsize == 2, "TILE": tuned.tokens,
        "BLOCK": min(tuned.codes, max(16, triton.next_power_of_2(codes))),
    }  # fmt: skip


class SegmentIndexing:
    """`SegmentOps.index_segments`, one layer at a time."""

    def index_segments(
        self,
        summary: CodeSummary,
        keys: torch.Tensor,
        slots: torch.Tensor,
        skips: torch.Tensor,
        index: SegmentIndex,
        records: torch.Tensor,
    ) -> None:
        """See `Ops.index_segments`; a launch for each number of tokens that are skipped."""
        pointers = torch.tensor([keys.data_ptr()], device=keys.device)
        rows = torch.arange(len(slots), device=keys.device)
        skips, records = skips.to(keys.device), records.to(keys.device)
        for skip in skips.unique().tolist():
            mine = torch.where(skips == skip, records, -1)
            jobs = torch.stack((rows, torch.zeros_like(rows), mine), 1).int()
            index_segments(
                summary, keys, pointers, slots.int(), jobs, index.codes[None],
                index.codebooks[None], skip,
            )  # fmt: skip
