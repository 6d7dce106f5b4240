"""Product quantisation of keys (PQCache, arXiv 2407.12820).

A key is cut into m sub-vectors, each replaced by the nearest of 2^bits centroids of its subspace
(Euclidean k-means). q·key is then a sum of m table entries. Unlike the paper's k-means the initial
centroids are strided and the number of iterations is fixed.
"""

from dataclasses import dataclass

import torch

from .exact import product_grid, require_finite
from .lloyd import fit, similarities

ITERATIONS = 10
"""Updates of the centroids."""


@dataclass(frozen=True)
class Codebook:
    """Centroids of every subspace of every KV head.

    Attributes:
        centroids: `[H, m, 2^bits, D / m]` in the keys' dtype.
    """

    centroids: torch.Tensor


def build_codebook(keys: torch.Tensor, m: int, bits: int, iterations: int = ITERATIONS) -> Codebook:
    """Fit the codebook of keys `[S, H, D]`, every KV head and subspace alone.

    Raises:
        ValueError: a key is not finite, or an argument is outside its range.
    """
    length, heads, width = keys.shape
    if length < 1:
        raise ValueError("keys must hold at least 1 token, got 0")
    if m < 1 or width % m:
        raise ValueError(f"m must divide head_dim {width}, got {m}")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    require_finite("keys", keys)
    parts = _parts(keys, m).flatten(0, 1)
    centroids = fit(parts, 1 << bits, iterations, cosine=False).centroids
    return Codebook(centroids.unflatten(0, (heads, m)).to(keys.dtype))


def encode(keys: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    """Nearest stored centroid, ties to the lower: keys `[S, H, D]` -> uint8 `[S, H, m]`.

    Raises:
        ValueError: a key is not finite.
    """
    require_finite("keys", keys)
    parts = product_grid(_parts(keys, codebook.centroids.shape[1]))
    nearest = similarities(parts, codebook.centroids.double(), cosine=False).argmax(-1)
    return nearest.movedim(-1, 0).to(torch.uint8)


def decode(codes: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    """Keys that codes stand for: uint8 `[S, H, m]` -> `[S, H, D]` in the codebook's dtype."""
    width = codebook.centroids.shape[-1]
    picked = codes.movedim(0, -1).long()[..., None]  # [H, m, S, 1]
    rows = codebook.centroids.gather(2, picked.expand(-1, -1, -1, width))
    return rows.movedim(2, 0).flatten(2)


def _parts(rows: torch.Tensor, m: int) -> torch.Tensor:
    """Cut rows `[S, H, D]` into sub-vectors `[H, m, S, D / m]`."""
    return rows.unflatten(-1, (m, -1)).movedim(0, 2)
