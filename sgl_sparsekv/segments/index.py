"""What segment records hold: clusters, or product-quantised keys, as codes and a codebook."""

from functools import cache

import torch

from ..geometry import ceil_div
from ..summaries import CodeSummary
from .clusters import CAP, ITERATIONS, build_clusters, capacity_of
from .exact import directions, product_grid
from .lloyd import similarities
from .quantise import ITERATIONS as PQ_ITERATIONS
from .quantise import build_codebook, encode

MAX_CODES = 256
"""Codes that a byte can hold."""


@cache
def clusters(segment_size: int, tokens_per_centroid: int) -> CodeSummary:
    """Clusters of a segment's keys: one code per token, its cluster.

    Raises:
        ValueError: there would be more clusters than codes.
    """
    count = ceil_div(segment_size, tokens_per_centroid)
    if count > MAX_CODES:
        raise ValueError(
            f"tokens_per_centroid must be at least {ceil_div(segment_size, MAX_CODES)} in segments "
            f"of {segment_size} tokens, got {tokens_per_centroid}"
        )

    def build(keys: torch.Tensor, skip: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys = keys.nan_to_num(0.0, 0.0, 0.0)
        found = build_clusters(keys, tokens_per_centroid, ITERATIONS, CAP, skip)
        codes = found.labels()
        if skip:
            rows = product_grid(directions(keys[:skip].movedim(0, 1)))
            codes[:, :skip] = similarities(rows, directions(found.centroids), True).argmax(-1)
        return codes[:, None].to(torch.uint8), found.centroids[:, None]

    capacity = capacity_of(segment_size, count, CAP)
    return CodeSummary("clusters", segment_size, 1, count, True, ITERATIONS, capacity, build)


@cache
def products(segment_size: int, subspaces: int, bits: int) -> CodeSummary:
    """Product-quantised keys: one code per token and sub-vector.

    Raises:
        ValueError: a code does not fit a byte.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"pq_bits must be 1 to 8, got {bits}")

    def build(keys: torch.Tensor, skip: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys = keys.nan_to_num(0.0, 0.0, 0.0)
        codebook = build_codebook(keys[skip:], subspaces, bits)
        return encode(keys, codebook).permute(1, 2, 0), codebook.centroids

    return CodeSummary(
        "products", segment_size, subspaces, 1 << bits, False, PQ_ITERATIONS, None, build
    )
