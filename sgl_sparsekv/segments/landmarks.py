"""Landmarks of chunks (ShadowKV, arXiv 2410.21465, section 4.2 and algorithm 1).

A landmark is the mean rotated key of 8 tokens. How badly it fits is the lowest cosine between it
and a member.
"""

import torch

from .exact import directions, dot, group_sums, product_grid, require_finite, sum_grid

CHUNK = 8
"""Tokens per landmark."""


def landmarks(keys: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Means of whole chunks: keys `[S, H, D]` -> `[S / chunk, H, D]` in the keys' dtype.

    Raises:
        ValueError: a key is not finite, or `chunk` does not divide S.
    """
    if chunk < 1 or not keys.shape[0] or keys.shape[0] % chunk:
        raise ValueError(f"chunk must divide the {keys.shape[0]} tokens of keys, got {chunk}")
    require_finite("keys", keys)
    chunks = keys.shape[0] // chunk
    label = torch.arange(chunks, device=keys.device).repeat_interleave(chunk)
    sums = group_sums(sum_grid(keys.movedim(0, 1)), label.expand(keys.shape[1], -1), chunks)
    return (sums / chunk).movedim(0, 1).to(keys.dtype)


def worst_cosines(keys: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """Lowest cosine of a chunk's keys with its landmark; 0 where either is zero.

    Args:
        keys: `[S, H, D]`.
        marks: `[n, H, D]`, its landmarks.

    Returns:
        float32 `[H, n]`.
    """
    members = product_grid(directions(keys.unflatten(0, (marks.shape[0], -1)).movedim(2, 0)))
    mark = product_grid(directions(marks.movedim(1, 0)[:, :, None]))
    return dot(members, mark)[..., 0].amin(-1).float()  # [H, n, chunk, 1] -> [H, n]
