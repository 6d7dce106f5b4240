"""How many of a row's candidates each KV head reads."""

import torch

LARGEST = torch.finfo(torch.float32).max
"""Rank of a score that is not a number: kept if there is room, behind what is always kept."""


def covering(scores: torch.Tensor, coverage: float, flat: float) -> torch.Tensor:
    """Fewest best candidates that cover the goal with what is always read: int64 `[H]`.

    Args:
        scores: `[H, u]`, logs of estimated shares of attention; what is left of 1 is always read.
        coverage: share to cover.
        flat: shares are raised to this power, and scaled to the sum that they had.
    """
    scores = scores.double().nan_to_num(-torch.inf, posinf=torch.inf)
    mass = scores.exp().sum(-1, keepdim=True)
    flattened = (flat * scores).exp()
    flattened *= mass / flattened.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    best_first = flattened.sort(dim=-1, descending=True).values
    before = best_first.cumsum(-1) - best_first  # covered without the unit and those behind it
    return (before < coverage - (1 - mass)).sum(-1)


def pooled(scores: torch.Tensor, room: int, least: float) -> torch.Tensor:
    """What each KV head may read of a pool of H * room candidates: int64 `[H]`.

    Args:
        scores: `[H, u]`, logs of estimated shares of attention.
        room: candidates of a KV head on the mean, at most u.
        least: part of `room` that every KV head gets.
    """
    heads, count = scores.shape
    floor = int(room * least)
    rank = scores.nan_to_num(LARGEST, posinf=LARGEST, neginf=-torch.inf)
    best_first = rank.sort(dim=-1, descending=True).values[:, floor:].flatten()
    best = best_first.sort(descending=True, stable=True).indices[: heads * (room - floor)]
    return floor + torch.bincount(best // max(count - floor, 1), minlength=heads)
