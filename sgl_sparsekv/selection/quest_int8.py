"""`quest_int8`: Quest's bounds as integers of 8 bits and a scale, rounded outwards.

A plane is that of `quest` divided by a scale of its own and rounded down (minima) or up (maxima):
what it says is a bound still, of 9/16 of the bytes at 128 channels. The scale is m * 2^e with m of
7 bits, so products of a code and the scale are exact and rounding is by comparison with them: the
bits are the same wherever a unit is summarised.
"""

import torch

from ..summaries import PageSummary
from .base import SummaryMethod
from .quest import highest, min_max, upper_bound

MOST = 127
"""Largest code."""
INVERSE = (1 / MOST) * (1 + 2.0**-21)
"""A little more than 1 / MOST, so that what it scales is within MOST codes after any rounding."""
LEAST_EXPONENT = -120
"""Of a scale; a plane of smaller numbers has codes 0 and 1 alone."""
SPARE = 16
"""Channels behind those of a plane, so that the next one is aligned: m, e, and nothing."""


def scales(largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of planes whose largest magnitude is this, float32: m in [64, 127] and e.

    Of what is not finite the scale is infinite.
    """
    bits = (largest * INVERSE).view(torch.int32) + 0x1FFFF >> 17  # 6 bits of the fraction, upwards
    m, e = 64 + (bits & 63), (bits >> 6) - 133
    small, broken = e < LEAST_EXPONENT, ~largest.isfinite()
    m = m.masked_fill(small, 64).masked_fill(broken, MOST)
    return m, e.masked_fill(small, LEAST_EXPONENT).masked_fill(broken, MOST)


def rounded_down(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The largest whole number of scales that is not above x.

    A quotient that is rounded to the nearest float32 never gets across a whole number: x is below
    so many scales by 2^-24 of itself at least. Kernels whose quotients are worse compare.
    """
    return torch.floor(x / scale)


def min_max_int8(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[m, unit, H, D]` -> int8 `[m, H, 2, D + 16]`: codes, then m and e of their scale."""
    signs = torch.tensor([[1.0], [-1.0]], device=keys.device)
    planes = min_max(keys).float() * signs  # a maximum is rounded up: its negative down
    m, e = scales(planes.abs().amax(-1, keepdim=True))
    codes = rounded_down(planes, torch.ldexp(m.float(), e))
    codes = torch.where(codes.isfinite() & (e < MOST), codes, float(-MOST)) * signs
    found = torch.cat((codes, m, e), -1)
    return torch.nn.functional.pad(found, (0, SPARE - 2)).to(torch.int8)


def decoded(planes: torch.Tensor, dim: int) -> torch.Tensor:
    """Planes `[..., D + 16]` -> what they say `[..., D]`: in float32 of float32, else float64."""
    wide = planes if planes.dtype == torch.float32 else planes.double()
    return torch.ldexp(wide[..., :dim] * wide[..., dim : dim + 1], wide[..., dim + 1 : dim + 2])


def bound_int8(q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """q `[..., G, D]`, float32 planes `[..., u, 2, D + 16]` -> `[..., G, u]`, see `upper_bound`."""
    return upper_bound(q, decoded(planes, q.shape[-1]))


def highest_int8(q: torch.Tensor, planes: torch.Tensor, tokens: int) -> torch.Tensor:
    """See `PageSummary.ceiling`."""
    return highest(q, decoded(planes, q.shape[-1]), tokens)


class QuestInt8(SummaryMethod):
    """Upper-bound page ranking, by bounds of half the bytes."""

    name = "quest_int8"
    formula = "own"
    citation = "bounds of Quest, arXiv 2406.10774"
    summary = PageSummary(
        "min_max_int8",
        ("min", "max"),
        min_max_int8,
        bound_int8,
        dtype=torch.int8,
        spare=SPARE,
        kernels="sgl_sparsekv.kernels.triton.int8_bounds:PLANES",
        ceiling=highest_int8,
    )
