"""Choose clusters of several segments within a budget, and estimate what is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .clusters import ClusterIndex
from .exact import dot, product_grid, total
from .shares import log_sum_exp, ranked


@dataclass(frozen=True)
class JoinedIndex:
    """Clusters of several segments side by side, C and N counted over all of them.

    Attributes:
        positions: int32 `[H, N]`, absolute positions, segment by segment.
        begins: int32 `[H, C]`, where a cluster's members begin in `positions`.
        sizes: int32 `[H, C]`, members of each cluster.
        members: members of all clusters of a KV head, the same for each.
    """

    positions: torch.Tensor
    begins: torch.Tensor
    sizes: torch.Tensor
    members: int


@dataclass(frozen=True)
class ChosenTokens:
    """What a budget keeps.

    Attributes:
        positions: int32 `[H, n]`, absolute and ascending.
        taken: int32 `[H, C]`, tokens kept of each cluster.
    """

    positions: torch.Tensor
    taken: torch.Tensor


def join(indices: Sequence[ClusterIndex], begins: Sequence[int]) -> JoinedIndex:
    """Put segments side by side; `begins` are the absolute positions they start at.

    Raises:
        ValueError: there is no segment.
    """
    if not indices:
        raise ValueError("indices must hold at least one segment, got none")
    positions, firsts, length, members = [], [], 0, 0
    for index, begin in zip(indices, begins, strict=True):
        positions.append(index.order.int() + begin)
        firsts.append(index.starts[:, :-1] + length)
        members += int(index.starts[0, -1] - index.starts[0, 0])
        length += index.order.shape[1]
    sizes = torch.cat([index.sizes for index in indices], -1)
    return JoinedIndex(torch.cat(positions, -1), torch.cat(firsts, -1), sizes, members)


def cluster_scores(q: torch.Tensor, index: ClusterIndex) -> torch.Tensor:
    """q·centroid without the softmax scale (an estimate; ClusterKV).

    Args:
        q: `[H, G, D]`, rotated.
        index: one segment.

    Returns:
        float32 `[H, G, C]`, -inf for clusters without members.
    """
    scores = dot(product_grid(q), product_grid(index.centroids))
    return scores.masked_fill((index.sizes == 0)[:, None], -torch.inf).float()


def select_clusters(scores: torch.Tensor, index: JoinedIndex, budget: int) -> ChosenTokens:
    """Take clusters in order of score; the last is cut so that the budget is met exactly.

    Args:
        scores: `[H, C]`; ties go to the lower cluster, what is not a number is read first.
        index: the clusters.
        budget: tokens per KV head.

    Returns:
        `min(budget, members)` tokens per KV head: how many depends on lengths alone. A cut cluster
        keeps its lowest positions.

    Raises:
        ValueError: the budget is negative.
    """
    if budget < 0:
        raise ValueError(f"budget must be at least 0, got {budget}")
    count = min(budget, index.members)
    best = ranked(scores)
    sizes = index.sizes.long().gather(-1, best)
    ends = sizes.cumsum(-1)
    taken = sizes.minimum((count - ends + sizes).clamp(min=0))
    place = torch.arange(count, device=scores.device).expand(scores.shape[0], count).contiguous()
    nth = torch.searchsorted(ends, place, right=True)
    inside = place - (ends - sizes).gather(-1, nth)
    member = index.begins.long().gather(-1, best.gather(-1, nth)) + inside
    positions = index.positions.gather(-1, member).sort(-1).values
    per_cluster = torch.empty_like(taken).scatter_(-1, best, taken)
    return ChosenTokens(positions, per_cluster.int())


def estimate(
    q: torch.Tensor,
    centroids: torch.Tensor,
    value_sums: torch.Tensor,
    sizes: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over clusters that were not read, every key taken to be its centroid.

    RetroInfer's estimation zone (arXiv 2505.02922): weight exp(scale q·centroid) for each of a
    cluster's tokens, so its values enter as their sum.

    Args:
        q: `[H, G, D]`.
        centroids: `[H, C, D]`.
        value_sums: `[H, C, Dv]`.
        sizes: int `[H, C]`.
        chosen: bool `[H, C]`, clusters that were read, if only in part.
        scale: softmax scale.

    Returns:
        out `[H, G, Dv]` in q's dtype and lse float32 `[H, G]`, mergeable with the attention state
        of what was read; 0 and -inf when every cluster was.
    """
    left_out = (chosen | (sizes == 0))[:, None]
    logits = dot(product_grid(q), product_grid(centroids)) * scale
    logits = logits.masked_fill(left_out, -torch.inf)
    lse = log_sum_exp(logits + sizes.double().log()[:, None])
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest.masked_fill(highest == -torch.inf, 0)).exp()
    mass = total(weights * sizes[:, None])[..., None]
    out = dot(product_grid(weights), product_grid(value_sums.mT)) / mass.masked_fill(mass == 0, 1)
    return out.to(q.dtype), lse.float()
