"""Tensor bundles that cross the borders between parts. Shapes use

rows  requests of the batch (or of one group of it)      H  KV heads of this rank
G     query heads per KV head (`group_size`)              D  head_dim
U     widest unit table of the rows                       n  widest selection of the rows
S     tokens of a segment                                 m  sub-vectors of a coded key
K     codes that a sub-vector can have

What a method selects are *units*: `unit_size` consecutive tokens, 16 for page methods, 8 for
ShadowKV's chunks, 1 where tokens are chosen one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import torch
from torch.nn.functional import pad

from .segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from .summaries import PageSummary, SegmentSummary


class Reduction(StrEnum):
    """How G query heads share one score.

    The softmax runs over the candidate units; `MAX` is the largest scaled score without one, which
    needs no look at the other candidates.
    """

    MAX_SOFTMAX = "max_softmax"
    MEAN_SOFTMAX = "mean_softmax"
    MAX = "max"


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
        if self.begin.is_contiguous() and self.end.is_contiguous():
            return self
        return Candidates(self.unit_table, self.begin.contiguous(), self.end.contiguous())


@dataclass(frozen=True)
class KeptUnits:
    """Sinks, window and tail of some rows.

    Attributes:
        table: int32 `[rows, n]`, physical units, in ascending logical order.
        counts: int32 `[rows]`, valid entries.
    """

    table: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, candidates: Candidates, num_units: torch.Tensor) -> "KeptUnits":
        """What is no candidate."""
        ranked = (candidates.end - candidates.begin).clamp(min=0)
        counts = num_units - ranked
        place = torch.arange(int(counts.max()), device=counts.device).expand(len(counts), -1)
        behind = torch.where(place >= candidates.begin[:, None], ranked[:, None], 0)
        logical = (place + behind).minimum(num_units[:, None] - 1).long()
        return cls(candidates.unit_table.gather(1, logical), counts)


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
        known: float32 `[rows, H, G]`, log-sum-exp of scaled q·k over what is read in any case,
            where scores are to be logs of shares of all attention; None: of the candidates'.
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
    known: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> "ScoreInputs":
        """The same of some rows, int64 `[n]`."""
        spans, index = self.candidates, self.index
        return replace(
            self,
            q=self.q[rows],
            index=None if index is None else replace(index, table=index.table[rows]),
            candidates=Candidates(spans.unit_table[rows], spans.begin[rows], spans.end[rows]),
            num_units=self.num_units[rows],
            counts=self.counts[rows],
            known=None if self.known is None else self.known[rows],
        )


@dataclass(frozen=True)
class Goal:
    """What decides how much each KV head of a row reads, below the row's ceiling.

    Attributes:
        coverage: float32 `[rows]`, share of attention to cover; 1: as much as the ceiling allows.
        pooled: int32 `[rows]`, 1 where the ceiling is a mean over the KV heads, 0 where it is one
            of each.
    """

    coverage: torch.Tensor
    pooled: torch.Tensor


POOL_FLOOR = 0.25
"""Part of its even share of what can be ranked that a KV head keeps of a pool."""


@dataclass(frozen=True)
class Ranking:
    """Scores of the candidates, and how far down they are read.

    Attributes:
        scores: float32 `[rows, H, U]`; -inf for no candidates.
        lowest: float32 `[rows, H]`, score below which nothing is read; None where the budget alone
            says how much is.
    """

    scores: torch.Tensor
    lowest: torch.Tensor | None = None

    def row(self, row: int) -> "Ranking":
        """One row of both, without that dimension."""
        return Ranking(self.scores[row], None if self.lowest is None else self.lowest[row])


@dataclass(frozen=True)
class Selection:
    """Chosen units per request and KV head, in ascending logical order; the tail unit is last.

    Attributes:
        logical: int32 `[rows, H, n]`, logical units, padded with -1.
        physical: int32 `[rows, H, n]`, the same units in the pool, padded with 0.
        counts: int32 `[rows, H]`, valid entries.
    """

    logical: torch.Tensor
    physical: torch.Tensor
    counts: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Selection":
        """That of some rows, int64 `[n]`."""
        return Selection(self.logical[rows], self.physical[rows], self.counts[rows])


@dataclass(frozen=True)
class TokenLists:
    """Tokens that the KV heads of some rows read, others each, by their places in the rows.

    Attributes:
        positions: of each row int32 `[H, at least n]`, ascending; a head's are its first `counts`.
        places: as `positions`: where in the row each lies.
        slots: of each row int32 `[L]`, slot of each place.
        counts: of each row, how many each KV head reads, at least 1.
    """

    positions: Sequence[torch.Tensor]
    places: Sequence[torch.Tensor]
    slots: Sequence[torch.Tensor]
    counts: Sequence[Sequence[int]]

    @cached_property
    def widest(self) -> int:
        """The largest count."""
        return max(map(max, self.counts))

    @cached_property
    def selection(self) -> Selection:
        """The same as units of one token."""
        counts = torch.tensor(self.counts, dtype=torch.int32, device=self.slots[0].device)
        there = torch.arange(self.widest, device=counts.device) < counts[..., None]
        logical = self._whole(self.positions).masked_fill(~there, -1)
        places = self._whole(self.places).masked_fill(~there, 0).long()
        physical = [own[mine] for own, mine in zip(self.slots, places, strict=True)]
        return Selection(logical, torch.stack(physical).masked_fill_(~there, 0), counts)

    def _whole(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[rows, H, widest]`."""
        cut = [row[:, : self.widest] for row in rows]
        return torch.stack([pad(row, (0, self.widest - row.shape[1])) for row in cut])


@dataclass(frozen=True)
class Rest:
    """What answers for tokens that a selection leaves out.

    Attributes:
        weights: float32 `[rows, H, G, 16 * segments]`, as `Ops.weigh` returns them.
        index: records of the clusters.
    """

    weights: torch.Tensor
    index: ResidualIndex


def per_head(counts: torch.Tensor, heads: int) -> torch.Tensor:
    """Counts `[rows, H]` of `[rows, H]`, or of `[rows]` where every KV head reads as much."""
    if counts.dim() == 2:
        return counts
    return counts.as_strided((len(counts), heads), (counts.stride(0), 0))


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
class ViewShape:
    """Room for the views of requests on a device that serves whole steps.

    Attributes:
        views: that there can be at once.
        layers: of this rank.
        first_layer: number of the first of them.
        kept: tokens that all views list at most, summed over layers and KV heads.
        queries: query vectors of all heads that all views hold, summed over layers.
        scores: whether each token that is listed has a score beside it.
    """

    views: int
    layers: int
    first_layer: int
    kept: int
    queries: int
    scores: bool


@dataclass(frozen=True)
class HeldShape:
    """Room for what requests hold of their selections on a device that serves whole steps.

    Attributes:
        places: requests that can hold any at once.
        layers: of this rank.
        first_layer: number of the first of them.
        units: that a request holds of each layer and KV head at most, of the smallest that a
            served method selects in.
    """

    places: int
    layers: int
    first_layer: int
    units: int


@dataclass(frozen=True)
class RecordShape:
    """Segment records of one kind on a device that serves whole steps.

    Attributes:
        summary: what a record holds.
        capacity: records there are.
        pages: of the pool.
    """

    summary: SegmentSummary
    capacity: int
    pages: int


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
        views: of requests; None: no served method keeps any.
        finest: tokens of the smallest unit that a served method selects in; 0: `unit_size`.
        records: of segments, that steps read.
        held: of selections that serve several steps; None: every step selects.
        estimates: whether clusters may answer for what is not read; their records are there.
        measured: numbers of the layers in which it can be told how much of their attention rows
            read; empty: nothing is measured.
        covered: numbers of the layers in which rows may ask for a coverage; empty: none may.
        own: page metadata that a served method brings kernels for; None: none does.
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
    views: ViewShape | None = None
    finest: int = 0
    records: tuple[RecordShape, ...] = ()
    held: HeldShape | None = None
    estimates: bool = False
    measured: range = range(0)
    covered: range = range(0)
    own: PageSummary | None = None

    @property
    def most_ranked(self) -> int:
        """Units of the longest context, counted in the smallest that is served."""
        return self.max_units * (self.unit_size // (self.finest or self.unit_size))
