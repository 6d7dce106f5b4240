"""Random records of clusters over the rows of a batch, and a step's buffers around them."""

from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace

import torch
from cases import Batch, make_batch
from sgl_sparsekv.kernels.triton.cluster_ops import (
    ClusterRows,
    allocate_clusters,
    opened_block,
    rest_parts,
)
from sgl_sparsekv.kernels.triton.launch import splits
from sgl_sparsekv.kernels.triton.spec import RESIDUALS
from triton_kit import DEVICE, moved

from sgl_sparsekv.segment_records import ResidualIndex
from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.types import RecordShape, Reduction, StepShape

POISON = 777


def make_residual(
    lengths: list[int], heads: int, group: int, dim: int, dtype: torch.dtype, unit: int,
    segment: int, parts: int,
) -> tuple[Batch, ResidualIndex]:  # fmt: skip
    """Rows whose whole segments have random clusters, some empty; every third has no record.

    Keys of tokens with a record are not numbers, nor is what no row has.
    """
    batch = make_batch(lengths, heads, group, dim, dtype, unit)
    rng = torch.Generator().manual_seed(segment)
    counts = [length // segment for length in lengths]
    records = sum(counts) + 2
    shape = (records, heads)
    order = torch.randperm(records, generator=rng).int()
    table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    scales = torch.full((*shape, 32 + parts), torch.nan)
    for row, count in enumerate(counts):
        table[row, :count] = order[sum(counts[:row]) :][:count]
        table[row, 1 + row % 2 : count : 3] = -1
        for nth, record in enumerate(table[row, :count].tolist()):
            if record >= 0:
                scales[record] = torch.rand(heads, 32 + parts, generator=rng) / 127
                slots = batch.slots(row)[nth * segment : (nth + 1) * segment]
                batch.keys[slots] = torch.nan
    labels = torch.randint(0, 13, (*shape, segment), generator=rng)
    labels[labels == 5] = 0
    sizes = torch.zeros(*shape, 16).scatter_add(2, labels, torch.ones(labels.shape))
    pairs = labels.unflatten(-1, (-1, 2))

    def bytes_of(*extents: int) -> torch.Tensor:
        return torch.randint(-127, 128, (*shape, *extents), generator=rng).to(torch.int8)

    codes = torch.randint(0, 256, (*shape, (parts + 1) // 2, segment), generator=rng)
    index = ResidualIndex(
        codes=codes.to(torch.uint8),
        labels=(pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8),
        places=labels.argsort(dim=-1, stable=True).short(),
        ends=sizes.cumsum(-1).short(),
        centroids=bytes_of(dim, 16),
        codebooks=bytes_of(parts, dim // parts, 16),
        values=bytes_of(16, dim),
        scales=scales,
        table=table,
    )
    return batch, index


@dataclass
class Scene:
    """A step's buffers, poisoned, and the rows that look at clusters.

    Attributes:
        batch: of rows.
        index: their records.
        spans: candidates of each row, in tokens.
        reaches: candidates that open clusters hold.
        own: tokens of a unit that rows choose in.
    """

    batch: Batch
    index: ResidualIndex
    spans: list[tuple[int, int]]
    reaches: list[int]
    own: int = 1
    reduction: Reduction = Reduction.MEAN_SOFTMAX
    layer: int = 0
    formulas: list[int] = field(default_factory=list)
    dense_layers: list[int] = field(default_factory=list)
    estimates: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        q, index = self.batch.q, self.index
        rows, heads, group, dim = q.shape
        segments, parts = index.table.shape[1], index.codebooks.shape[2]
        kept = residuals(index.segment_size, parts)
        unit, units = self.batch.unit_size, self.batch.table.shape[1]
        units = max(units, segments * index.segment_size // unit)
        shape = StepShape(
            max_rows=rows, requests=rows, max_units=units, max_selected=units, pool_units=units,
            heads=heads, group=group, head_dim=dim, v_head_dim=dim, unit_size=unit,
            page_size=unit, dtype=q.dtype, device=DEVICE, formulas=frozenset({"residuals"}),
            reduction=self.reduction, finest=1, records=(RecordShape(kept, len(index.codes), 1),),
            estimates=True,
        )  # fmt: skip
        ranked, parts = units * unit, splits(heads) + rest_parts(shape)
        clusters = allocate_clusters(shape, ranked)
        assert clusters is not None
        for tensor in vars(clusters).values():
            tensor.fill_(POISON % 200)
        self.rows, self.held = ClusterRows(shape, clusters), clusters

        def full(*extents: int) -> torch.Tensor:
            return torch.full((rows, heads, *extents), float(POISON), device=DEVICE)

        blocks = -(-ranked // opened_block(index.segment_size))
        records = torch.full((1, rows, segments + 1), -1, dtype=torch.int32)
        records[0, :, :segments] = index.table
        plan = self._plan(rows)
        self.buffers = SimpleNamespace(
            plan=plan, formulas=plan[0], table=moved(self.batch.table, DEVICE),
            records=SimpleNamespace(table=moved(records, DEVICE)),
            parts=full(blocks, 2, group), ranks=full(ranked),
            split_out=full(parts, group, dim), split_lse=full(parts, group),
        )  # fmt: skip
        names = (f.name for f in fields(ResidualIndex) if f.name != "table")
        self.arrays = {name: moved(getattr(index, name), DEVICE) for name in names}

    def _plan(self, rows: int) -> torch.Tensor:
        zeros = [0] * rows
        begins, ends = zip(*((a // self.own, b // self.own) for a, b in self.spans), strict=True)
        finer = (self.batch.unit_size // self.own).bit_length() - 1
        plan = [
            self.formulas or [RESIDUALS] * rows, begins, ends, zeros, zeros, zeros,
            self.dense_layers or zeros, [finer] * rows, self.reaches,
            self.estimates or [1] * rows,
        ]  # fmt: skip
        return torch.tensor(plan, dtype=torch.int32, device=DEVICE)

    def alone(self, row: int) -> "Scene":
        """The same of one row, its table as narrow as its segments."""
        whole = max(1, self.batch.lengths[row] // self.index.segment_size)
        index = replace(self.index, table=self.index.table[row : row + 1, :whole])
        return Scene(
            self.batch.alone(row), index, [self.spans[row]], [self.reaches[row]], self.own,
            self.reduction,
        )  # fmt: skip

    def open(self, scale: float) -> None:
        """See `ClusterRows.rank`."""
        q, keys = moved(self.batch.q, DEVICE), moved(self.batch.keys, DEVICE)
        self.rows.rank(self.layer, q, keys, self.arrays, self.buffers, scale)

    def rest(self, scale: float) -> None:
        """See `ClusterRows.rest`."""
        q = moved(self.batch.q, DEVICE)
        self.rows.rest(self.layer, q, self.arrays, self.buffers, scale)
