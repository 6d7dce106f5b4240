"""Segment records of one layer as kernels read them. Letters of shapes as in `types`."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SegmentBounds:
    """The bounds of one layer, and which of them the rows of a group read.

    Attributes:
        planes: `[records, H, planes, D]` in the keys' dtype.
        table: int32 `[rows, segments]`, record of each whole segment of a row, or -1.
        segment_size: tokens of a segment.
    """

    planes: torch.Tensor
    table: torch.Tensor
    segment_size: int


@dataclass(frozen=True)
class SegmentIndex:
    """The codes of one layer, and which of them the rows of a group read.

    Attributes:
        codes: uint8 `[records, H, m, S]`.
        codebooks: `[records, H, m, K, D / m]` in the keys' dtype.
        table: int32 `[rows, segments]`, record of each whole segment of a row; -1 where there is
            none, and its tokens are scored by their keys.
    """

    codes: torch.Tensor
    codebooks: torch.Tensor
    table: torch.Tensor

    @property
    def segment_size(self) -> int:
        """Tokens of a segment, S."""
        return int(self.codes.shape[-1])

    @property
    def entries(self) -> int:
        """Codes of a sub-vector, K."""
        return int(self.codebooks.shape[3])

    def decoded(self, record: int) -> torch.Tensor:
        """Keys that the codes of a record stand for: float32 `[H, S, D]`."""
        return looked_up(self.codes[record], self.codebooks[record].float())

    def groups(self, record: int) -> torch.Tensor:
        """Tokens whose sub-vectors stray alike: uint8 `[H, m, S]`, those with the same code."""
        return self.codes[record]


@dataclass(frozen=True)
class ResidualIndex:
    """Clusters, codes of what is left of keys, and values of clusters, of one layer.

    Attributes:
        codes: uint8 `[records, H, (m + 1) // 2, S]` of the m sub-vectors, tokens in the order of
            their clusters; of two codes in a byte the first is in the low half.
        labels: uint8 `[records, H, S / 2]`, cluster of each token in the order of the sequence; of
            two in a byte the first is in the low half.
        places: int16 `[records, H, S]`, where in the segment each of these tokens is, ascending
            within a cluster.
        ends: int16 `[records, H, 16]`, one past the last token of each cluster in that order.
        centroids: int8 `[records, H, D, 16]`, of the clusters; codes lie side by side, so that a
            table of q·centroid is a sum over channels.
        codebooks: int8 `[records, H, m, D / m, 16]`, of keys less their centroids.
        values: int8 `[records, H, 16, Dv]`, mean value of each cluster.
        scales: float32 `[records, H, 32 + m]`: of each centroid, each value and each codebook.
        table: int32 `[rows, segments]`, as in `SegmentIndex`.
    """

    codes: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    ends: torch.Tensor
    centroids: torch.Tensor
    codebooks: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor
    table: torch.Tensor

    @property
    def segment_size(self) -> int:
        """Tokens of a segment, S."""
        return int(self.codes.shape[-1])

    @property
    def entries(self) -> int:
        """Clusters of a segment and codes of a sub-vector, 16."""
        return int(self.centroids.shape[-1])

    def decoded(self, record: int) -> torch.Tensor:
        """Keys that the codes of a record stand for: float32 `[H, S, D]`."""
        places, parts = self.places[record].long(), self.codebooks.shape[2]
        in_order = unpacked(self.codes[record])[:, :parts]
        codes = in_order.gather(-1, places.argsort(-1)[:, None].expand(in_order.shape))
        scales = self.scales[record][:, -parts:]
        books = self.codebooks[record].mT.float() * scales[..., None, None]
        return self.of_clusters(record, self.cluster_keys(record)) + looked_up(codes, books)

    def groups(self, record: int) -> torch.Tensor:
        """Tokens whose sub-vectors stray alike: uint8 `[H, m, S]`, those of a cluster."""
        return self.clusters(record)[:, None].expand(-1, self.codebooks.shape[2], -1)

    def clusters(self, record: int) -> torch.Tensor:
        """Cluster of each token: uint8 `[H, S]`."""
        pairs = self.labels[record]
        return torch.stack((pairs & 15, pairs >> 4), -1).flatten(1)

    def cluster_keys(self, record: int) -> torch.Tensor:
        """Centroids: float32 `[H, 16, D]`."""
        scales = self.scales[record][:, : self.entries]
        return self.centroids[record].mT.float() * scales[..., None]

    def cluster_values(self, record: int) -> torch.Tensor:
        """Mean values: float32 `[H, 16, Dv]`."""
        scales = self.scales[record][:, self.entries : 2 * self.entries]
        return self.values[record].float() * scales[..., None]

    def of_clusters(self, record: int, rows: torch.Tensor) -> torch.Tensor:
        """Rows of clusters `[H, 16, W]` for each token: `[H, S, W]`."""
        return looked_up(self.clusters(record)[:, None], rows[:, None])


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    """Two codes in a byte: uint8 `[H, n, S]` -> `[H, 2 n, S]`."""
    return torch.stack((codes & 15, codes >> 4), 2).flatten(1, 2)


def looked_up(codes: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Rows that codes stand for: `[H, m, S]`, `[H, m, K, W]` -> `[H, S, m W]`."""
    picked = codes.long()[..., None].expand(*codes.shape, codebook.shape[-1])
    return codebook.gather(2, picked).movedim(1, 2).flatten(2)
