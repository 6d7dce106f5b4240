"""Clusters of one segment's keys (ClusterKV, arXiv 2412.03213), built segment by segment.

As in the paper: cosine distance, because a few large channels make other distances unstable;
centroids are means of the raw rotated keys, so that their length counts in q·centroid. Unlike it:
a segment in place of a prompt, strided in place of random initial centroids, and while iterating a
centroid is the mean *direction* of its members, for which the objective cannot rise.
"""

import math
from dataclasses import dataclass

import torch

from ..geometry import ceil_div
from .exact import group_counts, group_sums, require_finite, sum_grid
from .lloyd import Fit, fit, split

ITERATIONS = 6
"""Updates of the centroids."""
CAP = 4.0
"""Largest cluster, in multiples of the mean size."""
QUIET = 1 / 64
"""A key is quiet where it is no longer than this, in lengths of the segment's longest."""
LONGEST = 1 << 15
"""Tokens of a segment whose offsets an int16 can hold."""


@dataclass(frozen=True)
class ClusterCounts:
    """How the clusters of a segment are shared out.

    Attributes:
        clusters: in all, C.
        capacity: most tokens of one, or None.
        fitted: by k-means.
        apart: quiet keys have one of their own, behind those; the rest is for what is split.
    """

    clusters: int
    capacity: int | None
    fitted: int
    apart: bool

    @classmethod
    def of(cls, tokens: int, tokens_per_centroid: int, cap: float | None) -> "ClusterCounts":
        """Of a segment; quiet keys get a cluster where k-means has one left besides."""
        clusters = ceil_div(tokens, tokens_per_centroid)
        capacity = None if cap is None else capacity_of(tokens, clusters, cap)
        fitted = clusters - (tokens // capacity if capacity else 0)
        apart = fitted > 1
        return cls(clusters, capacity, fitted - apart, apart)


@dataclass(frozen=True)
class ClusterIndex:
    """Clusters of one segment of S tokens, all H KV heads.

    Attributes:
        centroids: `[H, C, D]` in the keys' dtype, means of the members; zero without members.
        order: int16 `[H, S]`, offsets in the segment: first the skipped ones, then the members of
            cluster 0, 1, ..., ascending inside a cluster.
        starts: int32 `[H, C + 1]`: cluster c holds `order[h, starts[h, c] : starts[h, c + 1]]`.
    """

    centroids: torch.Tensor
    order: torch.Tensor
    starts: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """Tokens of each cluster, int32 `[H, C]`."""
        return self.starts.diff(dim=-1)

    def labels(self) -> torch.Tensor:
        """Cluster of each offset, int64 `[H, S]`; -1 for the skipped ones."""
        place = torch.arange(self.order.shape[1], device=self.order.device, dtype=torch.int32)
        place = place.expand(self.order.shape).contiguous()
        cluster = torch.searchsorted(self.starts, place, right=True) - 1
        return torch.empty_like(cluster).scatter_(-1, self.order.long(), cluster)


def build_clusters(
    keys: torch.Tensor,
    tokens_per_centroid: int,
    iterations: int = ITERATIONS,
    cap: float | None = CAP,
    skip: int = 0,
) -> ClusterIndex:
    """Cluster the keys of one segment, every KV head alone.

    Quiet keys get the last cluster that k-means leaves: no query scores them high, and in the mean
    of others they would only dilute it.

    Args:
        keys: `[S, H, D]`, rotated.
        tokens_per_centroid: C = S / tokens_per_centroid, rounded up, whatever is skipped.
        iterations: updates of the centroids.
        cap: no cluster holds more than `cap` times the mean, S / C; a larger one is split
            (`lloyd.split`), for which k-means leaves as many of the C clusters as that can take.
            None: no bound, and k-means fits all C.
        skip: first tokens left out (the sinks, in the first segment).

    Raises:
        ValueError: a key is not finite, or an argument is outside its range.
    """
    if cap is not None and not cap > 1:
        raise ValueError(f"cap must be above 1, got {cap}")
    found, counts, silent = fit_keys(keys, tokens_per_centroid, iterations, cap, skip)
    labels = found.labels
    if counts.apart:
        labels = labels.masked_fill(silent, counts.fitted)
    if counts.capacity is not None:
        labels = split(labels, counts.fitted + counts.apart, counts.capacity)
    sizes = group_counts(labels, counts.clusters)
    sums = group_sums(sum_grid(keys[skip:].movedim(0, 1)), labels, counts.clusters)
    centroids = (sums / sizes.clamp(min=1)[..., None]).to(keys.dtype)
    first = torch.arange(skip, device=keys.device).expand(keys.shape[1], skip)
    order = torch.cat((first, labels.sort(dim=-1, stable=True).indices + skip), -1)
    starts = torch.nn.functional.pad(sizes.cumsum(-1), (1, 0)) + skip
    return ClusterIndex(centroids, order.to(torch.int16), starts.to(torch.int32))


def capacity_of(tokens: int, clusters: int, cap: float) -> int:
    """Most tokens of a cluster."""
    return math.ceil(cap * tokens / clusters)


def objective(
    keys: torch.Tensor,
    tokens_per_centroid: int,
    iterations: int = ITERATIONS,
    skip: int = 0,
    cap: float | None = None,
) -> torch.Tensor:
    """Sum of 1 - cosine(key, centroid) before each update and at the end, before splitting.

    Returns:
        float64 `[iterations + 1, H]`; never rises.
    """
    return fit_keys(keys, tokens_per_centroid, iterations, cap, skip)[0].objective


def fit_keys(
    keys: torch.Tensor, tokens_per_centroid: int, iterations: int, cap: float | None, skip: int
) -> tuple[Fit, ClusterCounts, torch.Tensor]:
    """Cosine k-means over keys `[S, H, D]` from `skip` on, before splitting.

    Returns:
        what it found, how clusters are shared out, and which keys are quiet, bool `[H, n]`.
    """
    length = keys.shape[0]
    if not 1 <= length <= LONGEST:
        raise ValueError(f"keys must hold 1 to {LONGEST} tokens, got {length}")
    if not 0 <= skip < length:
        raise ValueError(f"skip must be at least 0 and below {length} tokens, got {skip}")
    if tokens_per_centroid < 1:
        raise ValueError(f"tokens_per_centroid must be at least 1, got {tokens_per_centroid}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    require_finite("keys", keys)
    counts = ClusterCounts.of(length, tokens_per_centroid, cap)
    silent = quiet(keys[skip:])
    points = keys[skip:].movedim(0, 1).masked_fill(silent[..., None], 0)
    return fit(points, counts.fitted, iterations, cosine=True), counts, silent


def quiet(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[S, H, D]` too short to matter to any query: bool `[H, S]`, zeros always."""
    wide = keys.double().movedim(0, 1)
    # Scaled by the largest channel, so that no square overflows or vanishes.
    size = wide.abs().amax((-2, -1), keepdim=True)
    length = (wide / torch.where(size > 0, size, 1)).norm(dim=-1)
    silent: torch.Tensor = length <= QUIET * length.amax(-1, keepdim=True)
    return silent
