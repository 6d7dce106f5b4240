"""Tensor bundles that cross the borders between parts. Shapes use

rows  requests of the batch (or of one group of it)      H  KV heads of this rank
G     query heads per KV head (`group_size`)              D  head_dim
U     widest unit table of the rows                       n  widest selection of the rows
S     tokens of a segment                                 m  sub-vectors of a coded key
K     codes that a sub-vector can have

What a method selects are *units*: `unit_size` consecutive tokens, 16 for page methods, 8 for
ShadowKV's chunks, 1 where tokens are chosen one by one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch

IndexSegments = Callable[..., None]
"""`Ops.index_segments` of a device."""


class Reduction(StrEnum):
    """How G query heads share one score.

    The softmax runs over the candidate units; `MAX` is the largest scaled score without one, which
    needs no look at the other candidates.
    """

    MAX_SOFTMAX = "max_softmax"
    MEAN_SOFTMAX = "mean_softmax"
    MAX = "max"


@dataclass(frozen=True)
class PageSummary:
    """What a unit's metadata holds, and its meaning in plain torch.

    Attributes:
        name: names the field in the pool and the fused kernels of a device.
        planes: one name per vector `[W]` stored for each unit and KV head.
        summarise: keys `[n, unit, H, D]` -> planes `[n, H, planes, W]` in the keys' dtype.
        score: float32 q `[..., G, D]`, float32 planes `[..., u, planes, W]` -> `[..., G, u]`,
            an estimate of (or bound on) max q·k over the unit, without the softmax scale; None
            for a field that does not rank.
        ulps: how far two correct implementations may lie apart, in units in the last place of the
            vector's largest channel; 0 when planes are copies of keys.
        tokens: tokens of the unit it summarises, a divisor of the server's unit; None: that unit.
        width: channels W of a plane; None: those of a key, D.
    """

    name: str
    planes: tuple[str, ...]
    summarise: Callable[[torch.Tensor], torch.Tensor]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    ulps: int = 0
    tokens: int | None = None
    width: int | None = None


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

    A record holds its tokens in the order of their clusters, so that one cluster is one run. Codes
    are below 16, two in a byte; vectors are in 8 bits with a scale.

    Attributes:
        subspaces: sub-vectors of what is left of a key, m; divides D.
        build: a device's `index_segments`, keys `[n, S, H, D]`, values `[n, S, H, Dv]` and int64
            `[n]` first tokens not to learn from -> the arrays of `shapes`, each `[n, H, ...]`.
    """

    subspaces: int
    build: Callable[..., dict[str, torch.Tensor]]

    CODES: ClassVar[int] = 16
    WIDEST: ClassVar[int] = 512

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


def divided(head_dim: int, subspaces: int) -> int:
    """Channels of a sub-vector.

    Raises:
        ValueError: keys cannot be cut into so many.
    """
    if head_dim % subspaces:
        raise ValueError(f"head size must be a multiple of {subspaces} sub-vectors, got {head_dim}")
    return head_dim // subspaces


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


@dataclass(frozen=True)
class Candidates:
    """The units that a method may rank: neither sinks nor window.

    Attributes:
        unit_table: int32 `[rows, U]`, physical unit of each logical unit.
        begin: int32 `[rows]`, first candidate logical unit (sinks lie before it).
        end: int32 `[rows]`, one past the last candidate (the window lies behind it).
    """

    unit_table: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor

    def in_tokens(self, unit_size: int) -> "Candidates":
        """The same span in tokens; the table stays that of units."""
        if unit_size == 1:
            return self
        return Candidates(self.unit_table, self.begin * unit_size, self.end * unit_size)

    def contiguous(self) -> "Candidates":
        """The same with `begin` and `end` in one piece each."""
        return Candidates(self.unit_table, self.begin.contiguous(), self.end.contiguous())


@dataclass(frozen=True)
class ScoreInputs:
    """Everything a method may look at to score candidate units of one layer.

    Attributes:
        q: `[rows, H, G, D]`, rotated queries.
        keys: `[slots, H, D]`, the pool's K of this layer.
        fields: `[pool units, H, planes, W]` of each of the method's page summaries, by name.
        index: records of the method's segment summary, or None.
        candidates: units to score.
        num_units: int32 `[rows]`, units of the sequence.
        counts: int32 `[rows]`, units that will be kept.
        scale: softmax scale of the layer.
        reduction: from G query heads to one score.
        unit_size: tokens per unit.
    """

    q: torch.Tensor
    keys: torch.Tensor
    fields: Mapping[str, torch.Tensor]
    index: SegmentIndex | ResidualIndex | SegmentBounds | None
    candidates: Candidates
    num_units: torch.Tensor
    counts: torch.Tensor
    scale: float
    reduction: Reduction
    unit_size: int


@dataclass(frozen=True)
class Selection:
    """Chosen units per request and KV head, in ascending logical order; the tail unit is last.

    Attributes:
        logical: int32 `[rows, H, n]`, logical units, padded with -1.
        physical: int32 `[rows, H, n]`, the same units in the pool, padded with 0.
        counts: int32 `[rows]`, valid entries of each row (the same for every KV head).
    """

    logical: torch.Tensor
    physical: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class AttendShape:
    """One class of layers at one batch size: what a paged attend is made for.

    Attributes:
        rows: requests of the batch, padding included.
        heads: KV heads of this rank, H.
        group: query heads per KV head, G.
        head_dim: D of q and K.
        v_head_dim: Dv of V and the result.
        unit_size: tokens per unit.
        max_units: most units that one (row, head) can read.
        dtype: of q, K and V.
        device: where everything lies.
        graph: the runs are captured, so every buffer keeps its place.
    """

    rows: int
    heads: int
    group: int
    head_dim: int
    v_head_dim: int
    unit_size: int
    max_units: int
    dtype: torch.dtype
    device: torch.device
    graph: bool


@dataclass(frozen=True)
class StepShape:
    """Largest extents of a server's decode steps: what static buffers are allocated for.

    Attributes:
        max_rows: rows of a batch.
        requests: rows of `req_to_token`.
        max_units: units of the longest context.
        max_selected: units of the largest selection.
        pool_units: physical units of the pool.
        heads: KV heads of this rank.
        group: query heads per KV head.
        head_dim: channels of K.
        v_head_dim: channels of V.
        unit_size: tokens per unit.
        page_size: slots per page.
        dtype: element type of the cache.
        device: where the cache lies.
        formulas: names of the formulas that served methods rank by.
        reduction: from the query heads of a group to one score.
    """

    max_rows: int
    requests: int
    max_units: int
    max_selected: int
    pool_units: int
    heads: int
    group: int
    head_dim: int
    v_head_dim: int
    unit_size: int
    page_size: int
    dtype: torch.dtype
    device: torch.device
    formulas: frozenset[str]
    reduction: Reduction
