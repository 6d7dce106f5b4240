"""Lloyd's k-means, cosine or Euclidean, whose every bit is fixed by the points.

Initial centroids are points at equal strides, the number of iterations is fixed, ties go to the
lower cluster or point, and all sums are exact (`exact`), so a batch entry gives the same result
alone, in any batch and on any device.
"""

from dataclasses import dataclass

import torch

from .exact import (
    Grid,
    directions,
    dot,
    group_counts,
    group_sums,
    product_grid,
    squares,
    sum_grid,
    total,
)


@dataclass(frozen=True)
class Fit:
    """What k-means found for B sets of n points of width D.

    Attributes:
        centroids: float64 `[B, C, D]`; unit vectors (or zero) when the distance is the cosine.
        similarity: float64 `[B, n, C]` to these centroids, higher is nearer.
        labels: int64 `[B, n]`, nearest centroid.
        objective: float64 `[iterations + 1, B]` before each update and at the end: sum of
            1 - cosine, or of squared distances.
    """

    centroids: torch.Tensor
    similarity: torch.Tensor
    labels: torch.Tensor
    objective: torch.Tensor


def fit(points: torch.Tensor, clusters: int, iterations: int, *, cosine: bool) -> Fit:
    """Cluster points `[B, n, D]`.

    Args:
        points: finite rows; with `cosine` only their directions count.
        clusters: C, at least 1; more than n leaves some empty.
        iterations: updates of the centroids.
        cosine: distance 1 - cosine in place of the squared Euclidean one.
    """
    points = directions(points) if cosine else points.double()
    grid, summands, count = product_grid(points), sum_grid(points), points.shape[1]
    length = squares(grid)
    centroids = points[:, torch.arange(clusters, device=points.device) * count // clusters]
    objective = []
    for step in range(iterations + 1):
        similarity = similarities(grid, centroids, cosine)
        labels = similarity.argmax(-1)
        own = similarity.gather(-1, labels[..., None])[..., 0]
        objective.append(total(1 - own if cosine else length - 2 * own))
        if step < iterations:
            worst = (own - length / 2).sort(dim=-1, stable=True).indices
            seeds = points.gather(1, worst[:, :clusters, None].expand(-1, -1, points.shape[2]))
            centroids = updated(summands, labels, seeds, centroids, cosine)
    return Fit(centroids, similarity, labels, torch.stack(objective))


def similarities(points: Grid, centroids: torch.Tensor, cosine: bool) -> torch.Tensor:
    """Cosines, or x·c - |c|²/2 (ordered as the negative distance): float64 `[B, n, C]`."""
    grid = product_grid(centroids)
    inner = dot(points, grid)
    return inner if cosine else inner - squares(grid)[..., None, :] / 2


def updated(
    points: Grid,
    labels: torch.Tensor,
    seeds: torch.Tensor,
    centroids: torch.Tensor,
    cosine: bool,
) -> torch.Tensor:
    """Means of the members; the i-th empty cluster moves to the i-th worst fitting point.

    Neither can raise the objective: a mean is the best centroid of its members, and an empty
    cluster has none.

    Args:
        points: `sum_grid` of `[B, n, D]`.
        labels: int64 `[B, n]`.
        seeds: float64 `[B, min(n, C), D]`, the worst fitting points, the worst first.
        centroids: float64 `[B, C, D]`, before the update.
        cosine: means are brought to length one; where members cancel, the centroid stays.
    """
    clusters = centroids.shape[1]
    sums, counts = group_sums(points, labels, clusters), group_counts(labels, clusters)
    if cosine:
        means = directions(sums)
        means = torch.where(means.any(-1, keepdim=True), means, centroids)
    else:
        means = sums / counts.clamp(min=1)[..., None]
    empty = (counts == 0)[..., None]
    nth = (empty.cumsum(1) - 1).clamp(0, seeds.shape[1] - 1)
    return torch.where(empty, seeds.gather(1, nth.expand_as(means)), means)


def split(labels: torch.Tensor, clusters: int, capacity: int) -> torch.Tensor:
    """Cut clusters of more than `capacity` points into several, in order of position.

    Every piece keeps its cluster's kind of points, so no centroid is diluted by points that are
    moved for want of room. The first piece keeps the label, the others get labels from `clusters`
    on, cluster by cluster; at most n / capacity of them are needed.

    Args:
        labels: int64 `[B, n]`, below `clusters`.
        clusters: labels in use.
        capacity: points per cluster, at least 1.

    Returns:
        int64 `[B, n]`.
    """
    counts = group_counts(labels, clusters)
    by_cluster = labels.sort(dim=-1, stable=True).indices
    place = torch.arange(labels.shape[1], device=labels.device)
    begins = counts.cumsum(-1) - counts
    ranked = place - begins.gather(-1, labels.gather(-1, by_cluster))
    piece = torch.empty_like(labels).scatter_(-1, by_cluster, ranked // capacity)
    extra = (counts - 1).clamp(min=0) // capacity
    first = clusters + extra.cumsum(-1) - extra
    return torch.where(piece == 0, labels, first.gather(-1, labels) + piece - 1)
