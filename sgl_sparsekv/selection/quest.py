"""`quest`: rank units by an upper bound of q·k from per-channel minimum and maximum keys.

Quest, arXiv 2406.10774, section 3.3: bound = sum over channels of max(q_d * min_d, q_d * max_d).
Differences from the paper: the selection is shared by the query heads of a KV head (the paper's
kernels know no GQA), sinks and a recent window are always kept, and generated tokens are ranked
like any others.

The bound says little about how much attention a unit gets: it takes the best of every channel at
once. Where shares are asked for, the score goes from the middle of the box a quarter of the way to
its bound, which costs nothing and estimates best.
"""

import math
from dataclasses import replace
from functools import partial

import torch

from ..summaries import PageSummary
from .base import SummaryMethod
from .certificate import outward

REACH = 0.25
"""Part of the way from the middle of a unit's box to its bound, for estimates of shares."""


def min_max(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[m, unit, H, D]` -> per-channel minimum and maximum `[m, H, 2, D]`, exact."""
    return torch.stack((keys.amin(1), keys.amax(1)), dim=-2)


def upper_bound(q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """q `[..., G, D]`, planes `[..., u, 2, D]` -> `[..., G, u]`, at least q·k for every key."""
    low, high = planes[..., 0, :], planes[..., 1, :]
    return q.clamp(min=0) @ high.mT + q.clamp(max=0) @ low.mT


def highest(q: torch.Tensor, planes: torch.Tensor, tokens: int) -> torch.Tensor:
    """See `PageSummary.ceiling`: every key at the bound."""
    wide = planes.double()
    terms = q.abs() @ wide.abs().amax(-2).mT
    return outward(upper_bound(q, wide), terms) + math.log(tokens)


def within_bound(reach: float, q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """As `upper_bound`, from the middle of the box only `reach` of the way: an estimate."""
    return ((1 + reach) * upper_bound(q, planes) - (1 - reach) * upper_bound(-q, planes)) / 2


class Quest(SummaryMethod):
    """Upper-bound page ranking."""

    name = "quest"
    formula = "min_max"
    citation = "Quest, arXiv 2406.10774"
    summary = PageSummary("min_max", ("min", "max"), min_max, upper_bound, ceiling=highest)
    shares = replace(summary, score=partial(within_bound, REACH), reach=REACH)
    tells_shares = True
