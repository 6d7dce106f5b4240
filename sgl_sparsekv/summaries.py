"""What is kept of units and of segments, so that a method can tell which are worth reading.

Shapes use the letters of `types`, and W: channels of a plane.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

IndexSegments = Callable[..., None]
"""`Ops.index_segments` of a device."""


@dataclass(frozen=True)
class PageSummary:
    """What a unit's metadata holds, and its meaning in plain torch.

    Attributes:
        name: names the field in the pool and the fused kernels of a device.
        planes: one name per vector `[W]` stored for each unit and KV head.
        summarise: keys `[n, unit, H, D]` -> planes `[n, H, planes, W]` in their dtype.
        score: float32 q `[..., G, D]`, float32 planes `[..., u, planes, W]` -> `[..., G, u]`,
            an estimate of (or bound on) max q·k over the unit, without the softmax scale; None
            for a field that does not rank.
        ulps: how far two correct implementations may lie apart, in units in the last place of the
            vector's largest channel; 0 when planes are copies of keys.
        tokens: tokens of the unit it summarises, a divisor of the server's unit; None: that unit.
        width: channels W of a plane; None: those of a key, D.
        reach: how far `score` goes, in parts of the way from the middle of a box to its bound, or
            from a mean to the expected maximum.
        dtype: element type of the planes; None: that of the keys.
        spare: channels of a plane beside W.
        kernels: `module:name` of the functions that device triton compiles for it, a
            `kernels.triton.planes.Planes`; "": it has them, or none.
        ceiling: float64 q `[..., G, D]` with the softmax scale, planes `[..., u, planes, W]` as
            stored, tokens of the unit -> float64 `[..., G, u]`, at least the log-sum-exp of q·k
            over the unit's keys; None: it says nothing that holds.
    """

    name: str
    planes: tuple[str, ...]
    summarise: Callable[[torch.Tensor], torch.Tensor]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    ulps: int = 0
    tokens: int | None = None
    width: int | None = None
    reach: float = 1.0
    dtype: torch.dtype | None = None
    spare: int = 0
    kernels: str = ""
    ceiling: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] | None = None

    def shape(self, head_dim: int) -> tuple[int, int]:
        """Planes of a unit and KV head, and channels of each, of keys with `head_dim`."""
        return len(self.planes), (self.width or head_dim) + self.spare

    @property
    def poison(self) -> float:
        """What fields hold that must not be read: NaN, or the largest whole number."""
        whole = self.dtype is not None and not self.dtype.is_floating_point
        return torch.iinfo(self.dtype).max if whole else math.nan

    def nbytes(self, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of a unit and KV head, of keys in `dtype`."""
        planes, width = self.shape(head_dim)
        itemsize: int = (self.dtype or dtype).itemsize
        return planes * width * itemsize


@dataclass(frozen=True)
class SegmentSummary:
    """What the record of a segment holds.

    Attributes:
        name: names the records in the pool.
        segment_size: tokens of a segment, S; segments begin at multiples of it.
    """

    name: str
    segment_size: int

    def shapes(
        self, head_dim: int, v_head_dim: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
        """Per array of a record, its shape for one KV head and its type; None: the keys'.

        Raises:
            ValueError: keys of that size have no such record.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BoundSummary(SegmentSummary):
    """A page summary of the whole segment, to tell which segments are worth a closer look.

    Attributes:
        page: what is computed of the segment's keys as if it were one unit.
    """

    page: PageSummary

    def shapes(
        self, head_dim: int, v_head_dim: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
        """See `SegmentSummary.shapes`."""
        return {"planes": ((len(self.page.planes), head_dim), None)}


@dataclass(frozen=True)
class CodeSummary(SegmentSummary):
    """A code per token, and the vectors that codes stand for.

    A key is cut into m sub-vectors, each replaced by one of K centroids of its place. Clusters are
    the case m = 1: the code is the cluster, its vector the cluster's centroid.

    Attributes:
        subspaces: sub-vectors of a key, m; divides D.
        codes: centroids of a subspace, K, at most 256.
        cosine: k-means by direction, centroids being the mean raw key; else Euclidean.
        iterations: updates of the centroids.
        capacity: most tokens of one code, or None. What k-means makes larger is split in order of
            position: the first `capacity` tokens keep the code, the next get the first code that
            is free, and so on, cluster by cluster.
        build: keys `[S, H, D]` and the first tokens not to learn from -> codes uint8
            `[H, m, S]`, codebook `[H, m, K, D / m]` in the keys' dtype; in plain torch.
    """

    subspaces: int
    codes: int
    cosine: bool
    iterations: int
    capacity: int | None
    build: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]

    def shapes(
        self, head_dim: int, v_head_dim: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
        """See `SegmentSummary.shapes`."""
        width = divided(head_dim, self.subspaces)
        return {
            "codes": ((self.subspaces, self.segment_size), torch.uint8),
            "codebooks": ((self.subspaces, self.codes, width), None),
        }


@dataclass(frozen=True)
class ResidualSummary(SegmentSummary):
    """Clusters of tokens, codes of what is left of their keys, and values of clusters.

    Codes lie in the order of clusters, so that those of one cluster are one run. They are below 16,
    two in a byte; vectors are in 8 bits with a scale.

    Attributes:
        subspaces: sub-vectors of what is left of a key, m; divides D.
        learned: how clusters are found, and codes of what is left of keys.
        build: a device's `index_segments`, keys `[n, S, H, D]`, values `[n, S, H, Dv]` and int64
            `[n]` first tokens not to learn from -> the arrays of `shapes`, each `[n, H, ...]`.
    """

    subspaces: int
    learned: tuple[CodeSummary, CodeSummary]
    build: Callable[..., dict[str, torch.Tensor]]

    CODES: ClassVar[int] = 16
    WIDEST: ClassVar[int] = 512
    REACH: ClassVar[int] = 3
    """Tokens whose codes are looked at, for each that is read: with 2 the output's error grows by a
    tenth on language models, with 6 it is that of looking at all of them."""
    BY_CODE: ClassVar[float] = 0.2
    BY_CENTROID: ClassVar[float] = 0.4
    """Added to the logit of what is not read: exp of a key's stand-in is less than the mean of exp
    of the keys it stands for. Fitted to the output's error on two language models."""

    def shapes(
        self, head_dim: int, v_head_dim: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
        """See `SegmentSummary.shapes`."""
        parts, codes = self.subspaces, self.CODES
        if head_dim > self.WIDEST:
            raise ValueError(f"head size must be at most {self.WIDEST}, got {head_dim}")
        return {
            "codes": ((-(-parts // 2), self.segment_size), torch.uint8),
            "labels": ((self.segment_size // 2,), torch.uint8),
            "places": ((self.segment_size,), torch.int16),
            "ends": ((codes,), torch.int16),
            "centroids": ((head_dim, codes), torch.int8),
            "codebooks": ((parts, divided(head_dim, parts), codes), torch.int8),
            "values": ((codes, v_head_dim), torch.int8),
            "scales": ((2 * codes + parts,), torch.float32),
        }

    def write(
        self,
        index: IndexSegments,
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        skips: torch.Tensor,
        into: Mapping[str, torch.Tensor],
        records: torch.Tensor,
    ) -> None:
        """`SegmentOps.index_residuals` by a device's `index_segments`."""
        keys, values = cache
        for name, array in self.build(index, keys[slots], values[slots], skips).items():
            into[name][records] = array


def divided(head_dim: int, subspaces: int) -> int:
    """Channels of a sub-vector.

    Raises:
        ValueError: keys cannot be cut into so many.
    """
    if head_dim % subspaces:
        raise ValueError(f"head size must be a multiple of {subspaces} sub-vectors, got {head_dim}")
    return head_dim // subspaces
