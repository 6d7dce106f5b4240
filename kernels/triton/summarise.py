"""Summaries of units that have just filled: their fields, from their keys."""

import triton
import triton.language as tl

from . import spec
from .primitives import PENDING_BLOCK, landmark_of, mean_std_of, min_max_of, padded, store_planes

AHEAD = tl.constexpr(8)
"""Tokens of each unit that are loaded before the first is looked at."""
CHUNK = tl.constexpr(spec.CHUNK)
"""Tokens of a unit that has a landmark."""


@triton.jit
def summarise_units(
    field, keys, units, inside, stride_unit, stride_plane, stride_slot,
    MEAN_STD: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Fields of whole units of one KV head from their keys."""
    if MEAN_STD:
        a, b = mean_std_of(keys, units, inside, stride_slot, UNIT, DIM, AHEAD)
    else:
        a, b = min_max_of(keys, units, inside, stride_slot, UNIT, DIM, AHEAD)
    store_planes(field, units, inside, a, b, stride_unit, stride_plane, DIM)


@triton.jit
def summarise_landmarks(
    landmarks, misfits, keys, units, inside, heads, stride_slot, DIM: tl.constexpr
):
    """Landmark and misfit of whole chunks of one KV head from their keys."""
    mean, misfit = landmark_of(keys, units, inside, stride_slot, CHUNK, DIM)
    d = tl.arange(0, padded(DIM))
    where = landmarks + units[:, None] * heads * DIM + d[None, :]
    tl.store(where, mean, mask=inside[:, None] & (d < DIM)[None, :])
    tl.store(misfits + units * heads, misfit, mask=inside)


@triton.jit
def summarise_pending(
    keys, min_max, mean_std, landmarks, misfits, own, heads, pending, pending_count, capacity,
    worker, workers, stride_slot, stride_unit, stride_plane, stride_own_unit, stride_own_plane,
    HAS_MIN_MAX: tl.constexpr, HAS_MEAN_STD: tl.constexpr, HAS_LANDMARK: tl.constexpr,
    HAS_OWN: tl.constexpr, WRITE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the fields of this worker's share of the pending units, for one KV head."""
    count = tl.minimum(tl.load(pending_count), capacity)
    for first in range(worker * PENDING_BLOCK, count, workers * PENDING_BLOCK):
        i = first + tl.arange(0, PENDING_BLOCK)
        inside = i < count
        units = tl.load(pending + i, mask=inside, other=0).to(tl.int64)
        if HAS_MIN_MAX:
            summarise_units(
                min_max, keys, units, inside, stride_unit, stride_plane, stride_slot,
                False, UNIT, DIM,
            )  # fmt: skip
        if HAS_MEAN_STD:
            summarise_units(
                mean_std, keys, units, inside, stride_unit, stride_plane, stride_slot,
                True, UNIT, DIM,
            )  # fmt: skip
        if HAS_OWN:
            WRITE(
                own, keys, units, inside, stride_own_unit, stride_own_plane, stride_slot, UNIT, DIM
            )
        if HAS_LANDMARK:
            for part in tl.static_range(UNIT // CHUNK):
                summarise_landmarks(
                    landmarks, misfits, keys, units * (UNIT // CHUNK) + part, inside, heads,
                    stride_slot, DIM,
                )  # fmt: skip


@triton.jit
def summarise_kernel(
    keys, min_max, mean_std, landmarks, misfits, own_planes, pending, pending_count, capacity,
    stride_slot, stride_key_head, stride_unit, stride_field_head, stride_plane, stride_own_unit,
    stride_own_head, stride_own_plane,
    HAS_MIN_MAX: tl.constexpr, HAS_MEAN_STD: tl.constexpr, HAS_LANDMARK: tl.constexpr,
    HAS_OWN: tl.constexpr, WRITE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the fields of all pending units; grid `[workers, H]`.

    Args:
        min_max, mean_std: `[units, H, 2, D]`; landmarks: `[chunks, H, 1, D]` and misfits:
            `[chunks, H, 1, 1]`, both in one piece; own_planes: a method's own, written by the
            `write` of its `planes.Planes`; anything where there is none.
    """
    worker, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    summarise_pending(
        keys + head * stride_key_head,
        min_max + head * stride_field_head,
        mean_std + head * stride_field_head,
        landmarks + head * DIM, misfits + head, own_planes + head * stride_own_head,
        tl.num_programs(1), pending, pending_count, capacity, worker, tl.num_programs(0),
        stride_slot, stride_unit, stride_plane, stride_own_unit, stride_own_plane,
        HAS_MIN_MAX, HAS_MEAN_STD, HAS_LANDMARK, HAS_OWN, WRITE, UNIT, DIM,
    )  # fmt: skip
