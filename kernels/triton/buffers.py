"""The static buffers of decode steps: what a captured graph reads and writes, in one place."""

from dataclasses import dataclass

import torch

import triton
from sgl_sparsekv.types import StepShape, ViewShape

from .code_ops import least_block
from .cover_buffers import CoverBuffers, allocate_cover
from .level_ops import LevelBuffers, allocate_levels
from .primitives import UNIT_BITS
from .records import RecordBuffers, allocate_records
from .spec import CHUNK, CODED, RANKED
from .tuning import SELECT_CHUNK, num_splits

PENDING_CAPACITY = 1 << 16
"""Units that one step can summarise; more are met again in the next step."""
OPTION_FIELDS = 7
"""formula, budget, least budget, sink, window, dense layers, how fine its units are"""
PLAN_FIELDS = 8
"""formula, begin, end, units, count, tail, dense layers, how fine its units are"""
ALIGNED_UNITS, ALIGNED_ROWS = 128, 16
"""Rows of tables and scores begin at multiples of 16 bytes, whatever the model's context."""
VIEW_FIELDS = 3
"""tokens of the context when it was made (0: not yet), first query, queries of a layer"""


@dataclass(frozen=True)
class ViewBuffers:
    """What requests keep, and their last queries. A view owns a run of `kept` and one of `queries`.

    Attributes:
        of_request: int32 `[requests]`, view of each row of `req_to_token`, -1 for none.
        viewed: int32 `[2, max_rows]`, of each row of a step: its view, or -1, and how many tokens
            its context had when that was made, or 0 where everything is read.
        records: int32 `[views, 3 + 2 * layers * H]`, padded: `VIEW_FIELDS`; then by layer and KV
            head the first place in `kept`, and how many.
        kept: int32 `[kept + 1]`, positions, ascending by layer and KV head; the last place is for
            whatever is written and not kept.
        scores: float32 `[kept + 1]`, theirs; empty where no method goes on from them.
        queries: `[queries, H * G * D]`, by layer a ring: that of position p at p modulo its size.
    """

    of_request: torch.Tensor
    viewed: torch.Tensor
    records: torch.Tensor
    kept: torch.Tensor
    scores: torch.Tensor
    queries: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in vars(self).values())


@dataclass(frozen=True)
class StepBuffers:
    """Tensors that live as long as the server; every step overwrites what it needs.

    Attributes:
        options: int32 `[requests, 7]`, by row of `req_to_token`.
        ratios: float64 `[requests]`, share of the context, 0 where the budget is in tokens.
        plan: int32 `[8, max_rows]`, see `begin_kernel`.
        table: int32 `[max_rows, width]`, see `begin_kernel` and `units`.
        order: int32 `[max_rows]`, the row at each place of a step: rows that begin alike in turn.
        shared: int32 `[max_rows]`, see `begin_kernel`.
        pending: int32 `[capacity]`, units to summarise; pending_count: int32 `[1]`.
        logits: float32 `[max_rows, H, G, scored width]`, scaled estimates.
        parts: float32 `[max_rows, H, blocks, 2, G]`, maximum and sum of each block of units.
        best: int32 `[max_rows, H, 2, chunks of select]`, see `select_kernel`; empty where a row is
            always one program's.
        selected: int32 `[max_rows, H, max_selected]`, chosen physical units.
        logical: int32 `[max_rows, H, max_selected]`, the same by place in the sequence; empty
            unless selections are watched.
        offsets: int64 `[max_rows, H]`, where each run of `selected` begins.
        split_out: float32 `[max_rows, H, splits, G, Dv]`; split_lse: float32
            `[max_rows, H, splits, G]`.
        tickets: int32 `[max_rows, H]`, splits that have finished; zero between launches.
        out: `[max_rows, H, G, Dv]`; lse: float32 `[max_rows, H, G]`.
        ranks: float32 `[max_rows, H, ranked width]`, final scores of rows that leave such; empty
            where none does.
        sampled: int32 `[max_rows]`, 1 where a row is measured; masses: float32
            `[max_rows, layers, H, G]`, see `mass_kernel`; empty where nothing is measured.
        records: which segments have one; None where no served method reads any.
        levels: of segments; None where no served method looks at those first.
        views: of requests; None where no served method keeps any.
        cover: of rows that ask for a coverage; None where none may.
    """

    options: torch.Tensor
    ratios: torch.Tensor
    plan: torch.Tensor
    table: torch.Tensor
    order: torch.Tensor
    shared: torch.Tensor
    pending: torch.Tensor
    pending_count: torch.Tensor
    logits: torch.Tensor
    parts: torch.Tensor
    best: torch.Tensor
    selected: torch.Tensor
    logical: torch.Tensor
    offsets: torch.Tensor
    split_out: torch.Tensor
    split_lse: torch.Tensor
    tickets: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    ranks: torch.Tensor
    sampled: torch.Tensor
    masses: torch.Tensor
    records: RecordBuffers | None = None
    levels: LevelBuffers | None = None
    views: ViewBuffers | None = None
    cover: CoverBuffers | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in vars(self).values() if part is not None)

    @property
    def units(self) -> torch.Tensor:
        """int32 `[max_rows, width]`: the table without the bit of units that have no stamp."""
        return self.table & UNIT_BITS.value


def round_up(count: int, multiple: int) -> int:
    """The next multiple."""
    return triton.cdiv(count, multiple) * multiple


def allocate(shape: StepShape, score_units: int, watched: bool) -> StepBuffers:
    """Buffers for the largest step of `shape`."""
    rows, heads, group = shape.max_rows, shape.heads, shape.group
    splits, width = num_splits(heads), round_up(shape.max_units, ALIGNED_UNITS)
    scored = bool(shape.formulas - {"nothing", "position"})
    ranked = round_up(shape.most_ranked, ALIGNED_UNITS) if scored else 0
    blocks = triton.cdiv(most_scored(shape), score_units) if scored else 0
    if shape.formulas & CODED:
        blocks = max(blocks, triton.cdiv(shape.max_units * shape.unit_size, least_block(shape)))
    logits = round_up(most_scored(shape), ALIGNED_UNITS) if scored else 0
    chunks = triton.cdiv(shape.most_ranked, SELECT_CHUNK)

    def zeros(*extents: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(extents, dtype=dtype, device=shape.device)

    floats = torch.float32
    return StepBuffers(
        options=zeros(shape.requests, OPTION_FIELDS),
        ratios=zeros(shape.requests, dtype=torch.float64),
        plan=zeros(PLAN_FIELDS, round_up(rows, ALIGNED_ROWS))[:, :rows],
        table=zeros(rows, width),
        order=torch.arange(rows, dtype=torch.int32, device=shape.device),
        shared=zeros(rows),
        pending=zeros(min(PENDING_CAPACITY, shape.pool_units)),
        pending_count=zeros(1),
        logits=zeros(rows, heads, group, logits, dtype=floats),
        parts=zeros(rows, heads, blocks, 2, group, dtype=floats),
        best=zeros(rows, heads, 2, chunks * SELECT_CHUNK if scored and keeps_best(shape) else 0),
        selected=zeros(rows, heads, shape.max_selected),
        logical=zeros(rows, heads, shape.max_selected if watched else 0),
        offsets=torch.arange(rows * heads, device=shape.device).view(rows, heads)
        * shape.max_selected,
        split_out=zeros(rows, heads, splits, group, shape.v_head_dim, dtype=floats),
        split_lse=zeros(rows, heads, splits, group, dtype=floats),
        tickets=zeros(rows, heads),
        out=zeros(rows, heads, group, shape.v_head_dim, dtype=shape.dtype),
        lse=zeros(rows, heads, group, dtype=floats),
        ranks=zeros(rows, heads, ranked if leaves_ranks(shape) else 0, dtype=floats),
        sampled=zeros(rows if shape.measured else 0),
        masses=zeros(rows, len(shape.measured), heads, group, dtype=floats),
        records=of_records(shape) if shape.records else None,
        levels=allocate_levels(shape),
        views=None if shape.views is None else allocate_views(shape, shape.views),
        cover=allocate_cover(shape),
    )


def leaves_ranks(shape: StepShape) -> bool:
    """Whether some rows have final scores of their own when they come to `select`."""
    return bool(shape.formulas & RANKED or shape.covered)


def of_records(shape: StepShape) -> RecordBuffers:
    """Of all kinds of records that a server keeps."""
    sizes = [kind.summary.segment_size for kind in shape.records]
    segments = triton.cdiv(shape.max_units * shape.unit_size, min(sizes))
    return allocate_records(
        sizes, [kind.capacity for kind in shape.records], shape.max_rows, segments,
        shape.records[0].pages, shape.device,
    )  # fmt: skip


def most_scored(shape: StepShape) -> int:
    """Units of the longest context that `score_kernel` looks at: chunks, or units of the table."""
    if "landmark" in shape.formulas:
        return shape.max_units * (shape.unit_size // CHUNK)
    return shape.max_units if shape.formulas - {"nothing", "position", *CODED} else 0


def keeps_best(shape: StepShape) -> bool:
    """Whether chunks of a row leave their best for another program to choose from."""
    return shape.most_ranked > SELECT_CHUNK or "landmark" in shape.formulas


def allocate_views(shape: StepShape, room: ViewShape) -> ViewBuffers:
    """Buffers of as many views as there is room for; no request has one yet."""
    rows = round_up(shape.max_rows, ALIGNED_ROWS)
    fields = round_up(VIEW_FIELDS + 2 * room.layers * shape.heads, ALIGNED_ROWS)
    width = shape.heads * shape.group * shape.head_dim

    def full(*extents: int, fill: int = 0, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.full(extents, fill, dtype=dtype, device=shape.device)

    return ViewBuffers(
        of_request=full(shape.requests, fill=-1),
        viewed=full(2, rows, fill=-1)[:, : shape.max_rows],
        records=full(room.views, fields),
        kept=full(room.kept + 1),
        scores=full(room.kept + 1 if room.scores else 0, dtype=torch.float32),
        queries=full(room.queries, width, dtype=shape.dtype),
    )
