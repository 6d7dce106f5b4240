"""`mean_std`: rank units by the expected best key, from per-channel mean and standard deviation.

Same bytes as Quest. If the keys of a unit were drawn independently per channel, q·k would be
normal with mean q·mean and variance sum of q_d^2 std_d^2, and the expected maximum of n draws is
at most mean + sqrt(2 ln n) standard deviations. Quest's bound adds |q_d| * half-range linearly over
channels and saturates when a unit's keys differ; this estimate grows with the root instead.
(Mean and spread in place of min and max: arXiv 2605.27740.)
"""

import math
from dataclasses import replace
from functools import partial

import torch

from ..geometry import UNIT_SIZE
from ..summaries import PageSummary
from .base import SummaryMethod
from .certificate import outward

SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))
"""Standard deviations by which the best of a unit's keys is expected to exceed their mean."""


REACH = 1.5
"""Multiples of that by which a score exceeds the mean which is to tell shares of attention."""


def mean_and_std(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[m, unit, H, D]` -> mean and population standard deviation `[m, H, 2, D]`."""
    wide = keys.float()
    mean = wide.mean(1)
    std = (wide - mean[:, None]).square().mean(1).sqrt()
    return torch.stack((mean, std), dim=-2).to(keys.dtype)


def expected_maximum(q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """q `[..., G, D]`, planes `[..., u, 2, D]` -> `[..., G, u]`, an estimate of max q·k."""
    return within_spread(1.0, q, planes)


def within_spread(reach: float, q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """As `expected_maximum`, from the mean `reach` of the way: an estimate."""
    mean, std = planes[..., 0, :], planes[..., 1, :]
    return q @ mean.mT + reach * SPREAD * (q.square() @ std.square().mT).sqrt()


def furthest(q: torch.Tensor, planes: torch.Tensor, tokens: int) -> torch.Tensor:
    """See `PageSummary.ceiling`: one key as far above the mean as the deviation allows.

    Of n numbers with a mean and a deviation s, exp has the largest sum where one lies sqrt(n - 1) s
    above the mean and the others lie together (Cirtoaje's equal variable theorem). The deviation of
    q·k is at most the sum of |q_d| s_d. What the planes lost when they were made is added to both.
    """
    mean, std = planes.double().unbind(-2)
    kind, reach = torch.finfo(planes.dtype), math.sqrt(tokens - 1)
    lost = 2.0**-15 * (mean.abs() + reach * std) + kind.tiny  # of sums in float32
    mean_lost, std_lost = lost + kind.eps * mean.abs(), lost + kind.eps * std
    middle = q @ mean.mT + q.abs() @ mean_lost.mT
    spread = q.abs() @ (std + std_lost).mT
    terms = q.abs() @ (mean.abs() + mean_lost + reach * (std + std_lost)).mT
    others = middle - spread / reach + math.log(tokens - 1)
    return outward(torch.logaddexp(middle + reach * spread, others), terms)


class MeanStd(SummaryMethod):
    """Expected-maximum page ranking."""

    name = "mean_std"
    formula = "mean_std"
    citation = "arXiv 2605.27740 (mean and spread per page)"
    summary = PageSummary(
        "mean_std", ("mean", "std"), mean_and_std, expected_maximum, ulps=4, ceiling=furthest
    )
    shares = replace(summary, score=partial(within_spread, REACH), reach=REACH)
    tells_shares = True
