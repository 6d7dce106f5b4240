"""Rows that look at clusters first, or answer by them for what they do not read: a part of `fused`.

open   two launches      logits and sizes of clusters, and which are looked into
rank   two launches      tokens of open clusters, where a served method ranks by these
rest   one launch        what the selection leaves out, beside the splits of `attend`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import triton
from sgl_sparsekv.summaries import ResidualSummary
from sgl_sparsekv.types import Reduction, StepShape

from .clusters import clusters_kernel
from .launch import early, interpreted, processors, splits
from .opened import opened_kernel
from .opening import open_kernel
from .rest import rest_kernel
from .spec import RESIDUALS
from .tuning import WIDE_HEAD, next_power, score_chunks

if TYPE_CHECKING:
    from .buffers import StepBuffers

CLUSTERS = ResidualSummary.CODES
"""Of a segment."""
TOGETHER, PLACES = 4, 512
"""Segments of a block of `clusters_kernel`, whose centroids are 8 KiB (of float32 caches, one, as
they are widened); places that are counted, or looked up, at a time."""
REGISTERS = 128
"""Most of a thread of `clusters_kernel`."""
OPENED_TOKENS = 64
"""Tokens of a block whose keys are read."""
MOST_OPENED = 4096
"""Clusters that a program of `open_kernel` holds in registers."""
OPEN_WARPS = 8
"""Warps of `open_kernel`."""
OPENED_PARTS = 512
"""Blocks whose sums are added at a time."""


@dataclass(frozen=True)
class ClusterBuffers:
    """What is known of clusters, in one layer.

    Attributes:
        logits: float32 `[max_rows, H, G, 16 * segments]`.
        counts: int32 `[max_rows, H, 16 * segments]`, candidates.
        keys: the same extents; ranks as integers.
        opened: int32 `[max_rows, H, segments]`, see `open_kernel`.
        read: uint8 `[max_rows, H, ranked width]`, whether a unit of a row is read; empty where
            nothing is estimated.
    """

    logits: torch.Tensor
    counts: torch.Tensor
    keys: torch.Tensor
    opened: torch.Tensor
    read: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in vars(self).values())


def residuals_of(shape: StepShape) -> ResidualSummary | None:
    """The clusters that a server keeps, if it does."""
    kinds = (kind.summary for kind in shape.records)
    return next((kind for kind in kinds if isinstance(kind, ResidualSummary)), None)


def allocate_clusters(shape: StepShape, ranked: int) -> ClusterBuffers | None:
    """Buffers of the largest step; None where no clusters are kept.

    Args:
        shape: of the steps.
        ranked: width of rows of ranks.
    """
    kept = residuals_of(shape)
    if kept is None:
        return None
    segments = triton.cdiv(shape.max_units * shape.unit_size, kept.segment_size)
    pairs, width = (shape.max_rows, shape.heads), CLUSTERS * segments

    def zeros(*extents: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(*pairs, *extents, dtype=dtype, device=shape.device)

    return ClusterBuffers(
        logits=zeros(shape.group, width, dtype=torch.float32),
        counts=zeros(width),
        keys=zeros(width),
        opened=zeros(segments),
        read=zeros(ranked if shape.estimates else 0, dtype=torch.uint8),
    )


def rest_parts(shape: StepShape) -> int:
    """Programs that share what one row and KV head does not read."""
    return splits(shape.heads) if shape.estimates else 0


def rest_warps(head_dim: int) -> int:
    """Warps of `rest_kernel`: with half of them, wide heads spill."""
    return 8 if head_dim >= WIDE_HEAD else 4


def run_of(segment_size: int) -> int:
    """Places of a record that are looked up at a time."""
    return min(PLACES, segment_size & -segment_size)


def opened_block(segment_size: int) -> int:
    """Tokens of a block whose keys are read."""
    return min(OPENED_TOKENS, run_of(segment_size))


class ClusterRows:
    """The rows of a server's steps that look at clusters.

    Args:
        shape: of the steps.
        held: buffers of clusters.
    """

    def __init__(self, shape: StepShape, held: ClusterBuffers) -> None:
        kept = residuals_of(shape)
        assert kept is not None
        self.shape, self.held, self._kept = shape, held, kept
        self._kind = [kind.summary for kind in shape.records].index(kept)
        self._ranks = "residuals" in shape.formulas
        self._size = kept.segment_size

    @property
    def name(self) -> str:
        """Of the records."""
        return self._kept.name

    def rank(
        self,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        arrays: Mapping[str, torch.Tensor],
        buffers: "StepBuffers",
        scale: float,
    ) -> None:
        """Open clusters, and leave final scores of the rows that rank by them.

        Args:
            layer, q, keys, scale: as of `FusedDecode.decode`.
            arrays: of the records, in this layer.
            buffers: of the steps.
        """
        self._open(layer, q, arrays, buffers, scale)
        if not self._ranks:
            return
        rows, heads, group, dim = q.shape
        held, plan, table = self.held, buffers.plan, self._table(buffers)
        run, block = run_of(self._size), opened_block(self._size)
        chunks = score_chunks(rows, heads, table.shape[1], 1, processors())
        for ranks in (False, True):
            opened_kernel[(rows, heads, chunks)](
                q, keys, *self._coded(arrays), buffers.table, table, held.opened, held.logits,
                held.counts, plan[0], plan[1], plan[2], plan[6], buffers.parts, buffers.ranks,
                scale, layer, chunks, buffers.parts.shape[2], held.logits.shape[3],
                buffers.ranks.shape[2], table.shape[1], *q.stride()[:3], *keys.stride()[:2],
                *self._strides(arrays), buffers.table.stride(0), table.stride(0),
                held.opened.stride(1), RANKS=ranks, MEAN=self._mean, RESIDUALS=RESIDUALS,
                GROUP=group, DIM=dim, UNIT=self.shape.unit_size, SUBSPACES=self._kept.subspaces,
                SEGMENT=self._size, RUN=run, BLOCK=block, PARTS=OPENED_PARTS,
                UPCAST=interpreted(), **early(),
            )  # fmt: skip

    def rest(
        self,
        layer: int,
        q: torch.Tensor,
        arrays: Mapping[str, torch.Tensor],
        buffers: "StepBuffers",
        scale: float,
    ) -> None:
        """What the selections of a layer leave out, behind the splits of `attend`."""
        held, plan, table = self.held, buffers.plan, self._table(buffers)
        (rows, heads, group, dim), values = q.shape, arrays["values"]
        parts, before = rest_parts(self.shape), splits(self.shape.heads)
        rest_kernel[(parts, heads, rows)](
            q, *self._coded(arrays), values, table, held.opened, held.logits, held.counts,
            held.read, plan[0], plan[9], plan[8], plan[1], plan[2], plan[7], plan[6],
            buffers.split_out, buffers.split_lse, scale, ResidualSummary.BY_CODE,
            ResidualSummary.BY_CENTROID, layer, table.shape[1], held.logits.shape[3],
            *q.stride()[:3], *self._strides(arrays), *values.stride()[:2], table.stride(0),
            held.opened.stride(1), held.read.stride(1), RESIDUALS=RESIDUALS, GROUP=group, DIM=dim,
            VALUE_DIM=self.shape.v_head_dim, UNIT=self.shape.unit_size,
            SUBSPACES=self._kept.subspaces, SEGMENT=self._size, RUN=run_of(self._size),
            SPLITS=before, REST=parts, UPCAST=interpreted(), num_warps=rest_warps(dim), **early(),
        )  # fmt: skip

    @property
    def _mean(self) -> bool:
        return self.shape.reduction is Reduction.MEAN_SOFTMAX

    def _table(self, buffers: "StepBuffers") -> torch.Tensor:
        """Records of each row's segments, int32 `[max_rows, segments]`."""
        assert buffers.records is not None
        return buffers.records.table[self._kind, :, : self.held.opened.shape[2]]

    @staticmethod
    def _coded(arrays: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [arrays[name] for name in ("codes", "codebooks", "scales", "places", "ends")]

    def _strides(self, arrays: Mapping[str, torch.Tensor]) -> list[int]:
        return [stride for part in self._coded(arrays) for stride in part.stride()[:2]]

    def _open(
        self,
        layer: int,
        q: torch.Tensor,
        arrays: Mapping[str, torch.Tensor],
        buffers: "StepBuffers",
        scale: float,
    ) -> None:
        (rows, heads, group, dim), unit = q.shape, self.shape.unit_size
        held, plan, table = self.held, buffers.plan, self._table(buffers)
        segments, width = table.shape[1], held.logits.shape[3]
        spans = (plan[8], plan[1], plan[2], plan[7], plan[6])
        block = TOGETHER if q.dtype.itemsize == 2 else 1
        chunks = score_chunks(rows, heads, triton.cdiv(segments, block), 1, processors())
        centroids = [arrays[name] for name in ("centroids", "scales", "places", "ends")]
        clusters_kernel[(rows, heads, chunks)](
            q, *centroids, table, *spans, held.logits, held.counts, scale, layer, chunks, segments,
            width, *q.stride()[:3], *(s for part in centroids for s in part.stride()[:2]),
            table.stride(0), GROUP=group, DIM=dim, UNIT=unit, SEGMENT=self._size, BLOCK=block,
            TOKENS=run_of(self._size), UPCAST=interpreted(), maxnreg=REGISTERS, **early(),
        )  # fmt: skip
        most = min(next_power(width), MOST_OPENED)
        open_kernel[(rows, heads)](
            held.logits, held.counts, table, *spans, held.keys, held.opened, layer, segments,
            width, table.stride(0), held.opened.stride(1), GROUP=group, MEAN=self._mean,
            UNIT=unit, SEGMENT=self._size, BLOCK=most, ONE=width <= most, num_warps=OPEN_WARPS,
            **early(),
        )  # fmt: skip
