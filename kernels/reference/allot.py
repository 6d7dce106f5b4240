"""How many of a row's candidates each KV head reads."""

import torch

from sgl_sparsekv.types import POOL_FLOOR

LARGEST = torch.finfo(torch.float32).max
"""Rank of a score that is not a number: kept if there is room, behind what is always kept."""


def shared(scores: torch.Tensor, room: int) -> torch.Tensor:
    """What each KV head may read of a pool of H * room candidates: int64 `[H]`.

    Args:
        scores: `[H, u]`, logs of estimated shares of attention.
        room: candidates of a KV head on the mean, at most u.
    """
    heads, count = scores.shape
    floor = int(room * POOL_FLOOR)
    rank = scores.nan_to_num(LARGEST, posinf=LARGEST, neginf=-torch.inf)
    best_first = rank.sort(dim=-1, descending=True).values[:, floor:].flatten()
    best = best_first.sort(descending=True, stable=True).indices[: heads * (room - floor)]
    return floor + torch.bincount(best // max(count - floor, 1), minlength=heads)
