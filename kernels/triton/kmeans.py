"""K-means of one set of points by one program, in float32 and in a fixed order.

The pieces of `index`. A point is a sub-vector of a key of one KV head. Keys of 16 bits are exact in
TF32, whose products run on matrix units; what they are multiplied with is cut into two parts of 11
bits (SPLIT). Keys of 32 bits are multiplied as they are.
"""

import triton
import triton.language as tl

from .primitives import padded

QUIET = tl.constexpr(2.0**-12)
"""Square of `segments.clusters.QUIET`."""


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
    source, codes, k, end, scale, first, limit, WEIGHTED: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, LESS: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Sums `[k, W]` of the points from `first` to `end` that have codes k, and how many they are.

    WEIGHTED: of their directions, quiet ones being zero.
    """
    sums = tl.zeros([k.shape[0], padded(WIDTH, 16)], tl.float32)
    sizes = tl.zeros([k.shape[0]], tl.int32)
    for start in range(0, end, TILE):
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
    # Without branches: what they yield would be kept in the layouts of all who use it.
    end = tl.where(tl.min(seeds, 0) < 0, SIZE, 0)
    sums, sizes = sum_members(
        source, codes, k, end, scale, first, limit, COSINE, SIZE, WIDTH, LESS, TILE, SPLIT
    )
    rows = points(source, tl.maximum(seeds, 0), seeds >= 0, scale, WIDTH, LESS)
    if COSINE:
        length = inverse_lengths(sums, 0.0)[:, None]
        means = tl.where(length > 0, sums * length, kept)
        rows *= inverse_lengths(rows, limit)[:, None]
    else:
        means = tl.div_rn(sums, tl.maximum(sizes, 1).to(tl.float32)[:, None])
    return tl.where((seeds >= 0)[:, None], rows, means)


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
    best, _label, half = found
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
