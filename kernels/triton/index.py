"""Codes of whole segments: k-means of the keys of each (segment, KV head, sub-vector).

Grid `[H * m, jobs, layers]`: one program owns one set of S points and works in a fixed order, so a
record is the same bits in any company. It walks the points in tiles of tokens, and the centroids in
blocks. What lives from one iteration to the next is the label of each token, in `codes`, and for
each centroid either a token that it lies on or "the mean of its members": so a block of centroids
is summed up when it is needed, is matched with all tokens, and is forgotten again. An iteration
reads the keys twice for each block, mostly from L2, and any number of centroids fits.

It is the k-means of `sgl_sparsekv.segments.lloyd` in float32, its pieces are in `kmeans`. Points
are brought below 1 by a power of two, so that no square overflows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.summaries import CodeSummary

from .kmeans import (
    QUIET,
    block_of,
    centroids_of,
    inverse_lengths,
    longest_square,
    match,
    power_of,
    reseed,
    split_codes,
    sum_members,
    write_codes,
)
from .launch import capability, tuned_bytes
from .primitives import padded

REGISTERS = 255
"""Most of a thread. Left alone, the compiler spills to make room for more programs."""


@dataclass(frozen=True)
class IndexTuning:
    """Shapes of one program; chosen by the compiler's report, not measured on a GPU yet.

    Attributes:
        tokens: of a tile.
        codes: centroids of a block.
        warps: per program.
        split: products of 16-bit keys run in matrix units, a factor in float32 being cut in two.
    """

    tokens: int = 64
    codes: int = 32
    warps: int = 4
    split: bool = True


def index_tuning(
    width: int, segment_size: int, itemsize: int, arch: tuple[int, int]
) -> IndexTuning:
    """Shapes for points of so many channels, on one compute capability.

    A block of centroids is an operand of every product with a tile, and the compiler keeps both its
    parts in registers over all tiles: wide points have small blocks, as none of these may spill.
    The widest fit older architectures only uncut. Products of float32 keys run without matrix units
    and hold more registers.
    """
    warps = 8 if width > 128 or segment_size > 1024 else 4
    if itemsize == 4:
        return IndexTuning(16, 16, warps)
    if width <= 64:
        return IndexTuning(warps=warps)
    if width > 128:
        return IndexTuning(16, 16, warps, split=arch >= (9, 0))
    return IndexTuning(32, 32 if segment_size <= 2048 and arch >= (9, 0) else 16, warps)


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
            records, H, 32 + PARTS]`, which begin with scales of the centroids. Codes and codebooks
            are then `[layers, n, ...]`, written at the job's place. Else not read.
        skip: first tokens of a request not to learn from.
        FITTED: centroids of k-means. With APART quiet keys have the next code, and with CAPACITY
            the others are for what is split.
        SPLIT: keys are of 16 bits, and multiplied in matrix units.
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
        centroids += ((to * heads + head) * PARTS + part) * WIDTH * 16
        scales += (to * heads + head) * (32 + PARTS)
        to = layer.to(tl.int64) * tl.num_programs(1) + job
        labels += (to * heads + head) * SIZE
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
                source, codes, k, SIZE, scale, first, 0.0, False, SIZE, WIDTH, LESS, TILE, SPLIT
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
    less: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Write the records of whole segments in every layer; shapes are those of `index_kernel`.

    Args:
        summary: what to compute.
        keys_like: K of one layer, `[slots, H, D]`: the others have its strides and its type.
        key_pointers: int64 `[layers]`, the addresses of all, multiples of 16.
        slots: int32 `[requests, context]`, slot of each position.
        jobs: int32 `[n, 3]`, request, number of the segment in it, record or negative: none.
        codes, codebooks: of all layers; written.
        skip: first tokens of a request not to learn from.
        less: labels, centroids and scales, where what is left of the keys is to be coded.
    """
    _, heads, dim = keys_like.shape
    assert codes.is_contiguous() and codebooks.is_contiguous() and jobs.is_contiguous()
    assert codebooks.dtype is keys_like.dtype and keys_like.stride(2) == slots.stride(1) == 1
    labels, centroids, scales = less or (codes, codes, codes)
    grid = (heads * summary.subspaces, len(jobs), len(key_pointers))
    shape = (dim // summary.subspaces, summary.segment_size, tuned_bytes(keys_like.dtype))
    tuned = index_tuning(*shape, capability())
    constants = constants_of(summary, dim, keys_like.dtype.itemsize, tuned)
    if len(jobs):
        index_kernel[grid](
            key_pointers, slots, jobs, codes, codebooks, labels, centroids, scales,
            skip, (centroids if less else codes).shape[1], slots.stride(0), *keys_like.stride()[:2],
            **constants, LESS=less is not None,
            num_warps=tuned.warps, maxnreg=REGISTERS,
        )  # fmt: skip


def constants_of(
    summary: CodeSummary, dim: int, itemsize: int, tuned: IndexTuning
) -> dict[str, int]:
    """Compile-time arguments of `index_kernel` for keys of `dim` channels, but LESS."""
    size, codes = summary.segment_size, summary.codes
    pieces = size // summary.capacity if summary.capacity else 0
    apart = summary.cosine and codes - pieces > 1
    return {
        "PARTS": summary.subspaces, "SIZE": size, "WIDTH": dim // summary.subspaces,
        "CODES": codes, "FITTED": codes - pieces - apart, "APART": apart,
        "CAPACITY": summary.capacity or 0, "COSINE": summary.cosine,
        "ITERATIONS": summary.iterations, "SPLIT": itemsize == 2 and tuned.split,
        "TILE": tuned.tokens,
        "BLOCK": min(tuned.codes, max(16, triton.next_power_of_2(codes))),
    }  # fmt: skip


def jobs_by_skip(skips: torch.Tensor, records: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Jobs of segments that are rows of their own, for each number of tokens that are skipped."""
    rows = torch.arange(len(records), device=records.device)
    for skip in skips.unique().tolist():
        mine = torch.where(skips == skip, records, -1)
        yield skip, torch.stack((rows, torch.zeros_like(rows), mine), 1).int()


class CodeIndexing:
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
        for skip, jobs in jobs_by_skip(skips.to(keys.device), records.to(keys.device)):
            index_segments(
                summary, keys, pointers, slots.int(), jobs, index.codes[None],
                index.codebooks[None], skip,
            )  # fmt: skip
