"""Small pieces that several kernels share."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LARGEST = tl.constexpr(3.4028234663852886e38)
"""Rank of a score that is not a number: kept if there is room, behind what is always kept."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
PENDING_BLOCK = tl.constexpr(4)
"""Units that one program summarises at a time."""
UNIT_BITS = tl.constexpr(0x7FFFFFFF)
"""Bits of a table's entry that are the physical unit; the sign says that it has no stamp."""


@triton.jit
def take_turn(EARLY: tl.constexpr):
    """The first thing that a launch of a layer does.

    With EARLY its programs may have started before the launch in front of it had ended
    (programmatic dependent launch). They wait for that here; then the next launch may start. Every
    program comes by before it reads, writes or returns, so a launch that has ended tells the one
    behind it that all in front have ended too.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.constexpr_function
def padded(n, least=1):
    """Smallest power of two not below `n` and `least`: extents of a Triton block are such."""
    power = least
    while power < n:
        power *= 2
    return power


@triton.jit
def share_of(x, highest):
    """exp(x - highest): 1 where they are equal, so that an infinity is one among equals."""
    return tl.where(x == highest, 1.0, tl.exp2((x - highest) * LOG2E))


@triton.jit
def joined(a, b):
    """log(exp(a) + exp(b)); of two that are -inf, that."""
    higher = tl.maximum(a, b)
    return higher + tl.log(share_of(a, higher) + share_of(b, higher))


@triton.jit
def load_group(q, stride_group, GROUP: tl.constexpr, DIM: tl.constexpr, UPCAST: tl.constexpr):
    """Queries `[16 or more, padded DIM]` of one row and KV head; rows beyond GROUP are 0."""
    g = tl.arange(0, padded(GROUP, 16))
    d = tl.arange(0, padded(DIM))
    mask = (g < GROUP)[:, None] & (d < DIM)[None, :]
    rows = tl.load(q + g[:, None] * stride_group + d[None, :], mask=mask, other=0.0)
    return rows.to(tl.float32) if UPCAST else rows


@triton.jit
def finer_units(table, unit, listed, finer):
    """Physical units of a row's units, of which those of its table have 2^finer each; else 0."""
    entry = tl.load(table + (unit >> finer), mask=listed, other=0) & UNIT_BITS
    return (entry << finer) | (unit & ((1 << finer) - 1))


@triton.jit
def key_rows(keys, units, inside, token, stride_slot, UNIT: tl.constexpr, DIM: tl.constexpr):
    """Keys `[units, padded DIM]` of one token of each unit; 0 where not inside."""
    d = tl.arange(0, padded(DIM))
    rows = (units * UNIT + token) * stride_slot
    mask = inside[:, None] & (d < DIM)[None, :]
    return tl.load(keys + rows[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def min_max_of(
    keys, units, inside, stride_slot, UNIT: tl.constexpr, DIM: tl.constexpr, AHEAD: tl.constexpr
):
    """Per-channel minimum and maximum of whole units, exact, in the keys' type.

    AHEAD tokens are loaded before the first is looked at; the result is the same for any.
    """
    low = key_rows(keys, units, inside, 0, stride_slot, UNIT, DIM)
    high = low
    for token in tl.range(0, UNIT, AHEAD):
        for i in tl.static_range(AHEAD):
            row = key_rows(keys, units, inside, token + i, stride_slot, UNIT, DIM)
            wide = row.to(tl.float32)
            # Chosen, not computed: a rounding or a flushed subnormal would not be a key's own bits.
            low = tl.where((wide < low.to(tl.float32)) | (wide != wide), row, low)
            high = tl.where((wide > high.to(tl.float32)) | (wide != wide), row, high)
    return low, high


@triton.jit
def mean_std_of(
    keys, units, inside, stride_slot, UNIT: tl.constexpr, DIM: tl.constexpr, AHEAD: tl.constexpr
):
    """Per-channel mean and population standard deviation of whole units, in the keys' type."""
    total = tl.zeros([units.shape[0], padded(DIM)], tl.float32)
    for token in tl.range(0, UNIT, AHEAD):
        for i in tl.static_range(AHEAD):
            row = key_rows(keys, units, inside, token + i, stride_slot, UNIT, DIM)
            total += row.to(tl.float32)
    mean = total / UNIT
    square = tl.zeros([units.shape[0], padded(DIM)], tl.float32)
    for token in tl.range(0, UNIT, AHEAD):
        for i in tl.static_range(AHEAD):
            row = key_rows(keys, units, inside, token + i, stride_slot, UNIT, DIM)
            gap = row.to(tl.float32) - mean
            square += gap * gap
    kind = keys.dtype.element_ty
    return mean.to(kind), tl.sqrt(square / UNIT).to(kind)


@triton.jit
def finite(rows):
    """Float32 of what is finite; 0 of the rest."""
    wide = rows.to(tl.float32)
    return tl.where(tl.abs(wide) <= LARGEST, wide, 0.0)


@triton.jit
def landmark_of(keys, units, inside, stride_slot, UNIT: tl.constexpr, DIM: tl.constexpr):
    """Per-channel mean of whole units, in the keys' type, and how badly it fits.

    The latter is 1 less the lowest cosine of a key with it, and 1 where one of both is zero; in
    float64, as little is left of such a difference.
    """
    total = tl.zeros([units.shape[0], padded(DIM)], tl.float32)
    for token in range(UNIT):
        total += finite(key_rows(keys, units, inside, token, stride_slot, UNIT, DIM))
    mean = (total / UNIT).to(keys.dtype.element_ty)
    mark = mean.to(tl.float64)
    length = tl.sum(mark * mark, 1)
    worst = tl.full([units.shape[0]], 1.0, tl.float64)
    for token in range(UNIT):
        key = finite(key_rows(keys, units, inside, token, stride_slot, UNIT, DIM)).to(tl.float64)
        square = length * tl.sum(key * key, 1)
        cosine = tl.sum(key * mean.to(tl.float64), 1) / tl.sqrt(tl.where(square > 0, square, 1.0))
        worst = tl.minimum(worst, tl.where(square > 0, cosine, 0.0))
    return mean, (1 - worst).to(keys.dtype.element_ty)


@triton.jit
def store_planes(field, units, inside, a, b, stride_unit, stride_plane, DIM: tl.constexpr):
    """Write two planes of each unit."""
    d = tl.arange(0, padded(DIM))
    where = field + units[:, None] * stride_unit + d[None, :]
    mask = inside[:, None] & (d < DIM)[None, :]
    tl.store(where, a, mask=mask)
    tl.store(where + stride_plane, b, mask=mask)


@triton.jit
def load_planes(field, units, inside, stride_unit, stride_plane, DIM: tl.constexpr):
    """Two planes `[units, padded DIM]` of each unit; 0 where not inside."""
    d = tl.arange(0, padded(DIM))
    where = field + units[:, None] * stride_unit + d[None, :]
    mask = inside[:, None] & (d < DIM)[None, :]
    a = tl.load(where, mask=mask, other=0.0)
    return a, tl.load(where + stride_plane, mask=mask, other=0.0)
