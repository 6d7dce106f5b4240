import triton
import triton.language as tl
from sgl_sparsekv.kernels.triton.planes import (
    Planes,
    group_dot,
    key_rows,
    load_planes,
    store_planes,
)


@triton.jit
def write(field, keys, units, inside, stride_unit, stride_plane, stride_slot,
          UNIT: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    low = key_rows(keys, units, inside, 0, stride_slot, UNIT, DIM).to(tl.float32)
    high = low
    for token in range(1, UNIT):
        row = key_rows(keys, units, inside, token, stride_slot, UNIT, DIM).to(tl.float32)
        low, high = tl.minimum(low, row), tl.maximum(high, row)
    kind = keys.dtype.element_ty
    middle, half = ((low + high) * 0.5).to(kind), ((high - low) * 0.5).to(kind)
    store_planes(field, units, inside, middle, half, stride_unit, stride_plane, DIM)


@triton.jit
def estimate(q, field, units, known, stride_unit, stride_plane,
             DIM: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    middle, half = load_planes(field, units, known, stride_unit, stride_plane, DIM)
    return group_dot(q, middle, UPCAST) + 0.25 * group_dot(tl.abs(q), half, UPCAST)


PLANES = Planes(write, estimate)
