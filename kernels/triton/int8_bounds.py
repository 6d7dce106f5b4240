"""Bounds of units as integers of 8 bits and a scale: see `sgl_sparsekv.selection.quest_int8`."""

import triton
import triton.language as tl

from . import spec
from .planes import Planes
from .primitives import LARGEST, min_max_of, padded
from .summarise import AHEAD

MOST = tl.constexpr(spec.INT8_MOST)
INVERSE = tl.constexpr(spec.INT8_INVERSE)
LEAST = tl.constexpr(spec.INT8_LEAST_EXPONENT)
SPARE = tl.constexpr(spec.INT8_SPARE)


@triton.jit
def scale_of(m, e):
    """m * 2^e in float32, infinite where both are as large as they get."""
    return m.to(tl.float32) * ((e.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def store_down(field, rows, inside, x, SIGN: tl.constexpr, DIM: tl.constexpr):
    """Write rows `[n, padded DIM]` times SIGN, rounded down, as codes with that sign taken back."""
    d = tl.arange(0, padded(DIM))
    wide = x.to(tl.float32) * SIGN
    size = tl.where((d < DIM)[None, :], tl.abs(wide), 0.0)
    broken = tl.sum(tl.where(size <= LARGEST, 0, 1), 1) > 0
    bits = ((tl.max(size, 1) * INVERSE).to(tl.int32, bitcast=True) + 0x1FFFF) >> 17
    m, e = 64 + (bits & 63), (bits >> 6) - 133
    small = e < LEAST
    m = tl.where(broken, MOST, tl.where(small, 64, m))
    e = tl.where(broken, MOST, tl.where(small, LEAST, e))
    scale = tl.where(broken, 1.0, scale_of(m, tl.where(broken, 0, e)))[:, None]
    code = tl.floor(wide / scale)
    code = tl.where(code * scale > wide, code - 1, code)
    code = tl.where((code + 1) * scale <= wide, code + 1, code)
    code = tl.where(broken[:, None], -MOST, code) * SIGN
    mask = inside[:, None] & (d < DIM)[None, :]
    tl.store(field + rows[:, None] + d[None, :], code.to(tl.int8), mask=mask)
    i = tl.arange(0, SPARE)
    behind = tl.where((i == 0)[None, :], m[:, None], tl.where((i == 1)[None, :], e[:, None], 0))
    where = field + rows[:, None] + DIM + i[None, :]
    tl.store(where, behind.to(tl.int8), mask=inside[:, None])


@triton.jit
def write(
    field, keys, units, inside, stride_unit, stride_plane, stride_slot,
    UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """See `planes.Planes`."""
    low, high = min_max_of(keys, units, inside, stride_slot, UNIT, DIM, AHEAD)
    rows = units * stride_unit
    store_down(field, rows, inside, low, 1, DIM)
    store_down(field, rows + stride_plane, inside, high, -1, DIM)


@triton.jit
def scaled_dot(q, field, units, known, stride_unit, DIM: tl.constexpr):
    """q `[lanes, padded DIM]` times one plane of some units: float32 `[lanes, n]`."""
    d = tl.arange(0, padded(DIM))
    rows = field + units * stride_unit
    mask = known[:, None] & (d < DIM)[None, :]
    codes = tl.load(rows[:, None] + d[None, :], mask=mask, other=0)
    scale = scale_of(
        tl.load(rows + DIM, mask=known, other=0), tl.load(rows + DIM + 1, mask=known, other=0)
    )
    return tl.dot(q, tl.trans(codes.to(q.dtype)), input_precision="ieee") * scale[None, :]


@triton.jit
def estimate(
    q, field, units, known, stride_unit, stride_plane, DIM: tl.constexpr, UPCAST: tl.constexpr
):
    """See `planes.Planes`: the sum over channels of max(q low, q high), one plane at a time."""
    high = tl.where(q > 0, q, 0.0).to(q.dtype)
    bound = scaled_dot(high, field + stride_plane, units, known, stride_unit, DIM)
    low = tl.where(q < 0, q, 0.0).to(q.dtype)
    return bound + scaled_dot(low, field, units, known, stride_unit, DIM)


PLANES = Planes(write, estimate)
