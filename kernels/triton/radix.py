"""The k-th largest of many scores, and which of them are kept: what all selections share.

Scores become integers that sort like them; a radix descent of four 8-bit digits finds the k-th
largest; of those equal to it the lowest units are taken, by a running count in ascending order. So
ties are deterministic, whatever the order of programs and threads.
"""

import triton
import triton.language as tl

from .primitives import LARGEST

DIGITS = tl.constexpr(256)
BINS = tl.constexpr(2048)
"""In which all keys of a long row are counted: a first digit, finer where thresholds lie."""
NEAREST, NEAREST_BITS = tl.constexpr(8.0), tl.constexpr(0x41000000)
"""A score less than 0 is that much farther from 0 before it is cut into bins: those up to -8 are
1/32 wide, up to -24 1/16, and so on."""


@triton.jit
def sortable(score):
    """Float32 -> uint32 of the same order; both zeros are one, what is not a number is large."""
    score = tl.where((score != score) | (score > LARGEST), LARGEST, score)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    flipped = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return flipped.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def score_of(key):
    """The score that `sortable` made a key of."""
    flipped = (key ^ 0x80000000).to(tl.int32, bitcast=True)
    return (flipped ^ ((flipped >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def bin_of(key):
    """The bin of a key, of the same order, for scores that are logarithms: all above 0 are in one.

    A float's own exponent and first 8 bits of fraction, over the 8 octaves from NEAREST on; what is
    farther lies in bin 0.
    """
    distance = (0x7FFFFFFF - key).to(tl.float32, bitcast=True)
    distance = tl.where(key < 0x80000000, distance, 0.0) + NEAREST
    step = (distance.to(tl.int32, bitcast=True) - NEAREST_BITS) >> 15
    return tl.minimum(step, BINS - 1) ^ (BINS - 1)


@triton.jit
def narrowed(key, active, prefix, count, STEP: tl.constexpr, histogram):
    """Add the keys of this digit to the histogram, those that begin with the digits chosen."""
    SHIFT: tl.constexpr = 24 - 8 * STEP
    if STEP > 0:
        active = active & ((key >> (SHIFT + 8)) == prefix)
    digit = ((key >> SHIFT) & 0xFF).to(tl.int32)
    return histogram + tl.histogram(digit, DIGITS, mask=active)


@triton.jit
def crossing(histogram, count):
    """Where the `count`-th largest lies: (place in the histogram, what is left to count there)."""
    from_above = tl.cumsum(histogram, reverse=True)
    chosen = tl.sum((from_above >= count).to(tl.int32)) - 1
    above = tl.where(tl.arange(0, histogram.shape[0]) > chosen, histogram, 0)
    return chosen, count - tl.sum(above)


@triton.jit
def next_digit(histogram, prefix, count):
    """The digit in which the `count`-th largest key lies: (prefix, what is left to count)."""
    chosen, count = crossing(histogram, count)
    return (prefix << 8) | chosen.to(tl.uint32), count


@triton.jit
def threshold_of(key, exists, count):
    """The `count`-th largest of keys in registers (count at least 1), and how many equal to it."""
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        histogram = narrowed(key, exists, prefix, count, step, histogram)
        prefix, count = next_digit(histogram, prefix, count)
    return prefix, count


@triton.jit
def threshold_in_memory(keys, total, count, CHUNK: tl.constexpr):
    """As `threshold_of`, of keys that other programs wrote: uint32 as int32, `[total]`."""
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        for first in range(0, total, CHUNK):
            place = first + tl.arange(0, CHUNK)
            key = load_keys(keys, place, total)
            histogram = narrowed(key, place < total, prefix, count, step, histogram)
        prefix, count = next_digit(histogram, prefix, count)
    return prefix, count


@triton.jit
def load_keys(keys, place, total):
    """Keys from the second-level cache, where every program sees them; 0 beyond the last."""
    bits = tl.load(keys + place, mask=place < total, other=0, cache_modifier=".cg")
    return bits.to(tl.uint32, bitcast=True)


@triton.jit
def kept(key, least, of_equals):
    """Which keys are kept, the lowest of equals first; and how many equals may follow."""
    equal = (key == least).to(tl.int32)
    keep = (key > least) | ((equal != 0) & (tl.cumsum(equal) <= of_equals))
    return keep, of_equals - tl.sum(equal)
