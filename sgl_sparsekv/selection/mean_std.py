"""`mean_std`: rank units by the expected best key, from per-channel mean and standard deviation.

Same bytes as Quest. If the keys of a unit were drawn independently per channel, q·k would be
normal with mean q·mean and variance sum of q_d^2 std_d^2, and the expected maximum of n draws is
at most mean + sqrt(2 ln n) standard deviations. Quest's bound adds |q_d| * half-range linearly over
channels and saturates when a unit's keys differ; this estimate grows with the root instead.
(Mean and spread in place of min and max: arXiv 2605.27740.)
"""

import math

import torch

from ..geometry import UNIT_SIZE
from ..summaries import PageSummary
from .base import ShareModel, SummaryMethod

SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))
"""Standard deviations by which the best of a unit's keys is expected to exceed their mean."""


def mean_and_std(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[m, unit, H, D]` -> mean and population standard deviation `[m, H, 2, D]`."""
    wide = keys.float()
    mean = wide.mean(1)
    std = (wide - mean[:, None]).square().mean(1).sqrt()
    return torch.stack((mean, std), dim=-2).to(keys.dtype)


def expected_maximum(q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """q `[..., G, D]`, planes `[..., u, 2, D]` -> `[..., G, u]`, an estimate of max q·k."""
    mean, std = planes[..., 0, :], planes[..., 1, :]
    return q @ mean.mT + SPREAD * (q.square() @ std.square().mT).sqrt()


class MeanStd(SummaryMethod):
    """Expected-maximum page ranking."""

    name = "mean_std"
    formula = "mean_std"
    citation = "arXiv 2605.27740 (mean and spread per page)"
    summary = PageSummary("mean_std", ("mean", "std"), mean_and_std, expected_maximum, ulps=4)
    share_model = ShareModel(flat=0.85, offset=0.1)
