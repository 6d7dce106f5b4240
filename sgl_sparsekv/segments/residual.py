"""Clusters, and codes of what keys differ from them: residual product quantisation.

As an inverted file with product quantisation codes vectors (Jegou et al., TPAMI 2011): a key is its
cluster's centroid plus what is left, and what is left is cut into sub-vectors, each replaced by one
of 16. So few codes fit registers, two fit a byte, and 512 tokens share them. Each cluster keeps the
mean of its values as well: what a step does not read enters with the centroids and values of its
clusters, as in RetroInfer (arXiv 2505.02922), which leaves out clusters that are read in part.

Vectors are kept in 8 bits, with a scale for each centroid, each value and each codebook.
"""

from functools import cache, partial

import torch

from ..segment_records import SegmentIndex
from ..summaries import CodeSummary, IndexSegments, ResidualSummary
from .exact import group_counts, group_sums, sum_grid
from .index import products

CODES = ResidualSummary.CODES
BITS = 4


@cache
def residuals(segment_size: int, subspaces: int) -> ResidualSummary:
    """The summary of segments of so many tokens, what is left of a key having so many codes."""
    learned = (products(segment_size, 1, BITS), products(segment_size, subspaces, BITS))
    how = partial(build, learned)
    return ResidualSummary("residuals", segment_size, subspaces, learned, how)


def build(
    learned: tuple[CodeSummary, CodeSummary],
    index: IndexSegments,
    keys: torch.Tensor,
    values: torch.Tensor,
    skips: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Records of whole segments; each is the same bits in any company.

    Keys and values that are not finite count as zero.

    Args:
        learned: see `ResidualSummary`.
        index: a device's `Ops.index_segments`; makes clusters and codes.
        keys: K `[n, S, H, D]` of the segments' tokens.
        values: V `[n, S, H, Dv]`.
        skips: int64 `[n]`, first tokens of each segment not to learn from.

    Returns:
        the arrays of `ResidualSummary.shapes`, each `[n, H, ...]`.
    """
    dim = keys.shape[-1]
    keys, values = (x.nan_to_num(0.0, 0.0, 0.0) for x in (keys, values))
    labels, means = _coded(index, learned[0], keys, skips)
    centroids, centroid_scales = quantised(means[:, :, 0].float())
    labels = labels[:, :, 0]
    places, ends = by_cluster(labels)
    own = widened(centroids, centroid_scales).gather(
        2, labels.long()[..., None].expand(-1, -1, -1, dim)
    )
    rest = (keys.float() - own.movedim(1, 2)).to(keys.dtype)
    codes, books = _coded(index, learned[1], rest, skips)
    books, book_scales = quantised(books.float().flatten(3))
    mean_values = _means(values, labels, skips)
    mean_values, value_scales = quantised(mean_values)
    return {
        "codes": packed(codes.gather(-1, places.long()[:, :, None].expand(codes.shape))),
        "labels": packed(labels.unflatten(-1, (-1, 2)).mT)[..., 0, :],
        "places": places,
        "ends": ends,
        "centroids": centroids.mT,
        "codebooks": books.unflatten(3, (CODES, -1)).mT,
        "values": mean_values,
        "scales": torch.cat((centroid_scales, value_scales, book_scales), -1),
    }


def _coded(
    run: IndexSegments, summary: CodeSummary, keys: torch.Tensor, skips: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 `[n, H, m, S]` and codebooks `[n, H, m, K, D / m]` of keys `[n, S, H, D]`."""
    count, size, heads, dim = keys.shape
    shapes = summary.shapes(dim, dim)
    codes, books = (
        torch.zeros(count, heads, *shape, dtype=dtype or keys.dtype, device=keys.device)
        for shape, dtype in (shapes["codes"], shapes["codebooks"])
    )
    every = torch.arange(count, device=keys.device)
    slots = torch.arange(count * size, device=keys.device).view(count, size)
    index = SegmentIndex(codes, books, every[None].int())
    run(summary, keys.flatten(0, 1), slots, skips, index, every)
    return codes, books


def by_cluster(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens in the order of their clusters, and where each cluster ends.

    Args:
        labels: clusters of tokens, uint8 `[..., S]`.

    Returns:
        int16 `[..., S]`, ascending within a cluster, and int16 `[..., 16]`.
    """
    member = labels[..., None].long() == torch.arange(CODES, device=labels.device)
    ends = member.sum(-2).cumsum(-1)
    return labels.argsort(dim=-1, stable=True).to(torch.int16), ends.to(torch.int16)


def _means(values: torch.Tensor, labels: torch.Tensor, skips: torch.Tensor) -> torch.Tensor:
    """Mean value of each cluster: `[n, S, H, Dv]`, labels `[n, H, S]` -> float `[n, H, 16, Dv]`."""
    count, size, heads, _ = values.shape
    skipped = torch.arange(size, device=values.device) < skips.to(values.device)[:, None]
    group = labels.long().masked_fill(skipped[:, None], CODES).flatten(0, 1)
    rows = sum_grid(values.movedim(2, 1).flatten(0, 1))
    sizes = group_counts(group, CODES + 1).clamp(min=1)[..., None]
    means = (group_sums(rows, group, CODES + 1) / sizes)[:, :CODES]
    return means.float().unflatten(0, (count, heads))


def quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 rows `[..., D]` -> int8 rows, and their scales float32 `[...]`."""
    scale = rows.abs().amax(-1) / 127
    whole = (rows / torch.where(scale > 0, scale, 1)[..., None]).round()
    return whole.to(torch.int8), scale


def widened(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Int8 rows `[..., D]` and scales `[...]` -> float32 rows."""
    return rows.float() * scales[..., None]


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16, uint8 `[..., parts, S]` -> two in a byte, `[..., (parts + 1) // 2, S]`."""
    low, high = codes[..., ::2, :], codes[..., 1::2, :]
    if low.shape[-2] > high.shape[-2]:
        high = torch.cat((high, torch.zeros_like(low[..., -1:, :])), -2)
    return low | high << BITS
