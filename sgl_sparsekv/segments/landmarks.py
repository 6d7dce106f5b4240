"""Landmarks and outliers of chunks (ShadowKV, arXiv 2410.21465, section 4.2 and algorithm 1).

A landmark is the mean rotated key of 8 tokens. Chunks that it fits badly, by the lowest cosine
between landmark and member, are outliers and always read. The paper ranks outliers over a prompt;
here each segment has a quota, so that they are a function of the segment alone.
"""

import torch

from ..types import Reduction
from .exact import directions, dot, group_sums, product_grid, require_finite, sum_grid
from .shares import group_shares, top

CHUNK = 8
"""Tokens per landmark."""
OUTLIERS = 1
"""Outlier chunks of a segment and KV head."""


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


def outliers(
    keys: torch.Tensor, marks: torch.Tensor, quota: int = OUTLIERS, sinks: int = 0
) -> torch.Tensor:
    """Chunks to read always: the first `sinks`, then the worst fitting ones, ties to the lower.

    Args:
        keys: `[S, H, D]`.
        marks: `[n, H, D]`, its landmarks.
        quota: outliers of the segment, sinks included: a number that depends on no data.
        sinks: chunks that hold a sink (of the first segment).

    Returns:
        int32 `[H, min(quota, n)]`, ascending.

    Raises:
        ValueError: the quota is below `sinks`.
    """
    if quota < sinks:
        raise ValueError(f"quota must be at least the {sinks} sink chunks, got {quota}")
    misfit = -worst_cosines(keys, marks)
    misfit[:, :sinks] = torch.inf
    return top(misfit, quota)


def chunk_scores(
    q: torch.Tensor, marks: torch.Tensor, always: torch.Tensor, scale: float
) -> torch.Tensor:
    """Log of the group's maximum of softmax(scale q·landmark) over chunks that are not outliers.

    Args:
        q: `[H, G, D]`, rotated.
        marks: `[n, H, D]`, of any number of segments.
        always: int `[H, o]`, chunks that are read anyway.
        scale: softmax scale; the paper's is 1 / sqrt(D).

    Returns:
        float32 `[H, n]`, -inf for outliers.
    """
    logits = dot(product_grid(q), product_grid(marks.movedim(1, 0))) * scale
    outside = torch.zeros_like(logits[:, 0], dtype=torch.bool).scatter_(-1, always.long(), True)
    return group_shares(logits.masked_fill(outside[:, None], -torch.inf), Reduction.MAX_SOFTMAX)


def select_chunks(
    q: torch.Tensor, marks: torch.Tensor, always: torch.Tensor, scale: float, count: int
) -> torch.Tensor:
    """Outliers and the best `count` other chunks (or all): int32 `[H, o + count]`, ascending.

    Args: see `chunk_scores`.
    """
    scores = chunk_scores(q, marks, always, scale)
    best = top(scores, min(count, marks.shape[0] - always.shape[1]))
    return torch.cat((always.int(), best), -1).sort(-1).values
