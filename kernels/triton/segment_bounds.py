"""Bounds of whole segments: the smallest and the largest key by channel, exact.

Grid `[jobs, H, layers]`: one program reads a segment once. Each of its units has a line of the
block, as where units are summarised; then lines are compared in pairs of neighbours, so that of
equal keys it is the first one's bits that stay, whatever units a server has.
"""

import torch

import triton
import triton.language as tl

from .primitives import min_max_of, padded
from .summarise import AHEAD


@triton.constexpr_function
def halvings(n):
    """How often a power of two can be halved."""
    return n.bit_length() - 1


@triton.jit
def of_pairs(rows, HIGHER: tl.constexpr):
    """Of each two rows of `[2 n, D]` the lower or the higher by channel: `[n, D]`."""
    COUNT: tl.constexpr = rows.shape[0] // 2
    pairs = tl.permute(tl.reshape(rows, [COUNT, 2, rows.shape[1]]), (0, 2, 1))
    a, b = tl.split(pairs)
    wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
    better = wide_b > wide_a if HIGHER else wide_b < wide_a
    return tl.where(better | (wide_b != wide_b), b, a)


@triton.jit(do_not_specialize=["most"])
def segment_bounds_kernel(
    key_pointers,
    slots,
    jobs,
    planes,
    most,
    stride_row,
    stride_slot,
    stride_head,
    SIZE: tl.constexpr,
    UNIT: tl.constexpr,
    DIM: tl.constexpr,
):
    """Write the record of one segment and KV head in one layer.

    Args:
        key_pointers: int64 `[layers]`, addresses of K `[slots, H, D]`, multiples of 16.
        slots: int32 `[requests, stride_row]`, slot of each position.
        jobs: int32 `[n, 3]`, request, number of the segment in it, record or negative: none.
        planes: `[layers, most, H, 2, D]` in the keys' type.
        most: records of a layer.
    """
    job, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    layer = tl.program_id(2)
    record = tl.load(jobs + job * 3 + 2).to(tl.int64)
    if record < 0:
        return
    row, nth = tl.load(jobs + job * 3).to(tl.int64), tl.load(jobs + job * 3 + 1)
    keys = tl.load(key_pointers + layer).to(tl.pointer_type(planes.dtype.element_ty))
    keys = tl.multiple_of(keys, 16) + head * stride_head
    part = tl.arange(0, SIZE // UNIT)
    unit = tl.load(slots + row * stride_row + nth * SIZE + part * UNIT).to(tl.int64) // UNIT
    low, high = min_max_of(keys, unit, part >= 0, stride_slot, UNIT, DIM, AHEAD)
    for _ in tl.static_range(halvings(SIZE // UNIT)):
        low, high = of_pairs(low, False), of_pairs(high, True)
    d = tl.arange(0, padded(DIM))[None, :]
    to = (layer.to(tl.int64) * most + record) * tl.num_programs(1) + head
    tl.store(planes + to * 2 * DIM + d, low, mask=d < DIM)
    tl.store(planes + to * 2 * DIM + DIM + d, high, mask=d < DIM)


def bound_segments(
    size: int,
    unit: int,
    keys_like: torch.Tensor,
    key_pointers: torch.Tensor,
    slots: torch.Tensor,
    jobs: torch.Tensor,
    planes: torch.Tensor,
) -> None:
    """Write the records of whole segments in every layer; shapes are those of the kernel.

    Args:
        size: tokens of a segment.
        unit: tokens of a unit, which lie side by side.
        keys_like: K of one layer, `[slots, H, D]`: the others have its strides and its type.
        key_pointers: int64 `[layers]`, the addresses of all, multiples of 16.
        slots: int32 `[requests, context]`, slot of each position.
        jobs: int32 `[n, 3]`, request, number of the segment in it, record or negative: none.
        planes: of all layers; written.
    """
    _, heads, dim = keys_like.shape
    assert planes.is_contiguous() and jobs.is_contiguous()
    assert planes.dtype is keys_like.dtype and keys_like.stride(2) == slots.stride(1) == 1
    if len(jobs):
        segment_bounds_kernel[(len(jobs), heads, len(key_pointers))](
            key_pointers, slots, jobs, planes, planes.shape[1], slots.stride(0),
            *keys_like.stride()[:2], SIZE=size, UNIT=unit, DIM=dim,
        )  # fmt: skip
