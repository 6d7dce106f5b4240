"""From scores per query head to one ranking per KV head."""

import torch

from ..types import Reduction
from .exact import total

LARGEST = torch.finfo(torch.float32).max
"""Rank of a score that is not a number: read rather than lost."""


def log_sum_exp(x: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in float64: `[..., n]` -> `[...]`; -inf when all are."""
    top = x.double().amax(-1, keepdim=True)
    shifted = (x.double() - top.masked_fill(top == -torch.inf, 0)).exp()
    return top[..., 0] + total(shifted).clamp(min=torch.finfo(torch.float64).tiny).log()


def group_shares(scores: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Log of the group's maximum or mean of softmax over the candidates.

    Args:
        scores: scaled, `[H, G, n]`; -inf for what is no candidate.
        reduction: PQCache (arXiv 2407.12820) adds up the softmax of the G query heads, which
            orders as the mean does; ShadowKV (arXiv 2410.21465, section 4) takes the maximum.

    Returns:
        float32 `[H, n]`, -inf outside the candidates.
    """
    wide = scores.double()
    whole = log_sum_exp(wide)[..., None]
    shares = wide - whole.masked_fill(whole == -torch.inf, 0)
    best = shares.amax(1)
    if reduction is Reduction.MAX_SOFTMAX:
        return best.float()
    base = best.masked_fill(best == -torch.inf, 0)
    mass = torch.zeros_like(best)
    for share in shares.unbind(1):
        mass = mass + (share - base).exp()
    return (base + (mass / scores.shape[1]).log()).float()


def ranked(scores: torch.Tensor) -> torch.Tensor:
    """Best first, ties to the lower: `[H, n]` -> int64 `[H, n]`."""
    known = scores.nan_to_num(LARGEST, posinf=LARGEST, neginf=-torch.inf)
    return known.sort(dim=-1, descending=True, stable=True).indices


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The best `count` (or all, when fewer) of `[H, n]`, ascending: int32 `[H, min(count, n)]`.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    return ranked(scores)[:, :count].sort(-1).values.int()
