"""What records of segments hold, in plain torch."""

import torch

from sgl_sparsekv.types import ResidualIndex, SegmentIndex


def decoded(index: SegmentIndex | ResidualIndex, record: int) -> torch.Tensor:
    """Keys that the codes of a record stand for: float32 `[H, S, D]`."""
    if isinstance(index, SegmentIndex):
        return looked_up(index.codes[record], index.codebooks[record].float())
    places, parts = index.places[record].long(), index.codebooks.shape[2]
    in_order = unpacked(index.codes[record])[:, :parts]
    codes = in_order.gather(-1, places.argsort(-1)[:, None].expand(in_order.shape))
    scales = index.scales[record][:, -parts:]
    books = index.codebooks[record].mT.float() * scales[..., None, None]
    return cluster_keys(index, record) + looked_up(codes, books)


def cluster_keys(index: ResidualIndex, record: int) -> torch.Tensor:
    """Centroid of each token's cluster: float32 `[H, S, D]`."""
    return of_clusters(index, record, centroids(index, record))


def cluster_values(index: ResidualIndex, record: int) -> torch.Tensor:
    """Value of each token's cluster: float32 `[H, S, Dv]`."""
    many = index.entries
    scales = index.scales[record][:, many : 2 * many]
    return of_clusters(index, record, index.values[record].float() * scales[..., None])


def centroids(index: ResidualIndex, record: int) -> torch.Tensor:
    """Float32 `[H, 16, D]`."""
    scales = index.scales[record][:, : index.entries]
    return index.centroids[record].mT.float() * scales[..., None]


def labels(index: ResidualIndex, record: int) -> torch.Tensor:
    """Cluster of each token, int64 `[H, S]`."""
    pairs = index.labels[record]
    return torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).long()


def of_clusters(index: ResidualIndex, record: int, rows: torch.Tensor) -> torch.Tensor:
    """Rows of clusters `[H, 16, W]` for each token: `[H, S, W]`."""
    return looked_up(labels(index, record)[:, None], rows[:, None])


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    """Two codes in a byte: uint8 `[H, n, S]` -> `[H, 2 n, S]`."""
    return torch.stack((codes & 15, codes >> 4), 2).flatten(1, 2)


def looked_up(codes: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Rows that codes stand for: `[H, m, S]`, `[H, m, K, W]` -> `[H, S, m W]`."""
    picked = codes.long()[..., None].expand(*codes.shape, codebook.shape[-1])
    return codebook.gather(2, picked).movedim(1, 2).flatten(2)
