"""The methods that are compared, each set up as a server would have it."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from bench.quality.dump import LayerDump
from bench.quality.eight_bit import rounded
from sgl_sparsekv.geometry import UNIT_SIZE, Geometry
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.page_metadata import SINKS
from sgl_sparsekv.segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from sgl_sparsekv.segments.quantise import Codebook, encode
from sgl_sparsekv.selection import SelectionMethod, load_method
from sgl_sparsekv.selection.base import IndexOptions
from sgl_sparsekv.selection.certificate import mass_floor
from sgl_sparsekv.selection.policy import IntArray, RowOptions, RowPlan, plan_rows
from sgl_sparsekv.selection.sampling import sampled_ranking
from sgl_sparsekv.summaries import BoundSummary, CodeSummary, PageSummary, ResidualSummary
from sgl_sparsekv.types import Candidates, KeptUnits, Reduction, ScoreInputs, Selection

SINK, WINDOW = 16, 64
"""Tokens that are always read: the server's defaults."""


@dataclass(frozen=True)
class Variant:
    """A method with the options that shape it.

    Attributes:
        name: as tables call it.
        method: name in the registry.
        index: how segments are indexed.
        inherited: all segments are coded with the first one's codebook.
        estimate: what is not read is answered for by clusters: of `clusterkv` with centroids and
            sums of values, of `residual_pq` with centroids and mean values.
        unit: tokens per unit, for methods without a grain of their own; of a server, if above 16.
        free: its choosing is not counted: a bound and no method.
        rescored: its scores depend on the budget.
        eight_bit: page planes are kept in 8 bits: a study, and not served.
        sink: first tokens that are always read.
        window: newest tokens that are always read.
    """

    name: str
    method: str
    index: IndexOptions = field(default_factory=IndexOptions)
    inherited: bool = False
    estimate: bool = False
    unit: int = UNIT_SIZE
    free: bool = False
    rescored: bool = False
    eight_bit: bool = False
    sink: int = SINK
    window: int = WINDOW

    @property
    def selection(self) -> SelectionMethod:
        """The method itself."""
        return load_method(self.method)

    @property
    def unit_size(self) -> int:
        """Tokens of what it selects."""
        return self.selection.unit_size or self.unit

    @property
    def geometry(self) -> Geometry:
        """Of a server that serves it."""
        return Geometry(max(UNIT_SIZE, self.unit), max(UNIT_SIZE, self.unit))

    def plan(self, lengths: IntArray, budget: int) -> RowPlan:
        """What rows of these lengths keep of a budget."""
        options = (budget, self.sink, self.window, self.unit_size)
        full = [np.full_like(lengths, value) for value in options]
        return plan_rows(lengths, RowOptions(*full[:3]), self.geometry, full[3])


def clustered(segment: int, tokens: int, estimate: bool = False) -> Variant:
    """`clusterkv` with segments and mean clusters of so many tokens."""
    name = f"clusterkv {tokens}/{segment}{' + estimate' if estimate else ''}"
    options = IndexOptions(cluster_segment=segment, tokens_per_centroid=tokens)
    return Variant(name, "clusterkv", options, estimate=estimate)


def quantised(segment: int, subspaces: int, bits: int, inherited: bool = False) -> Variant:
    """`pqcache` with a codebook per segment, or the first one's."""
    name = f"pqcache {subspaces}x{bits}/{segment}{' inherited' if inherited else ''}"
    options = IndexOptions(pq_segment=segment, pq_subspaces=subspaces, pq_bits=bits)
    return Variant(name, "pqcache", options, inherited=inherited)


def residual(segment: int, subspaces: int, estimate: bool = True) -> Variant:
    """`residual_pq` with segments of so many tokens, and so many codes beside the cluster."""
    name = f"residual_pq {subspaces}x4/{segment}{' + estimate' if estimate else ''}"
    options = IndexOptions(residual_segment=segment, residual_subspaces=subspaces)
    return Variant(name, "residual_pq", options, estimate=estimate, rescored=True)


VARIANTS = (
    Variant("quest", "quest"),
    Variant("quest_two_level", "quest_two_level", rescored=True),
    Variant("mean_std", "mean_std"),
    Variant("quest, 8 bits", "quest", eight_bit=True),
    Variant("mean_std, 8 bits", "mean_std", eight_bit=True),
    Variant("shadowkv", "shadowkv", rescored=True),
    *(clustered(512, t) for t in (16, 32)),
    *(clustered(s, t) for s in (1024, 4096) for t in (16, 32, 64, 80)),
    *(clustered(s, t, estimate=True) for s in (1024, 4096) for t in (16, 32)),
    *(
        quantised(s, m, b, inherited)
        for m, b in ((2, 6), (4, 6), (4, 8))
        for s in (1024, 4096)
        for inherited in (False, True)
    ),
    *(quantised(512, m, 4) for m in (4, 8)),
    *(residual(512, m, estimate) for m in (4, 8) for estimate in (False, True)),
    residual(1024, 4),
    Variant("streaming", "streaming"),
    Variant("oracle, units", "oracle", free=True),
    Variant("oracle, tokens", "oracle", unit=1, free=True),
)


class Runner:
    """One variant over one layer's pool: slot = position."""

    def __init__(self, variant: Variant, layer: LayerDump, lengths: IntArray, ops: Ops) -> None:
        self.variant, self.layer, self.lengths, self.ops = variant, layer, lengths, ops
        spare = -len(layer.keys) % variant.geometry.unit_size
        self.keys, self.values = (
            torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, spare))
            for rows in (layer.keys, layer.values)
        )
        self._fields = {summary.name: self._field(summary) for summary in self.method.summaries}
        self.index = self._index()
        self._held: dict[object, torch.Tensor] = {}
        self._shares: dict[object, torch.Tensor] = {}

    @property
    def method(self) -> SelectionMethod:
        """The method."""
        return self.variant.selection

    def select(self, plan: RowPlan) -> Selection:
        """What every row reads under a plan."""
        inputs, ranked = self.inputs(plan), _ranked(plan)
        if ranked not in self._held or self.variant.rescored:
            self._held = {ranked: self.method.score(self.ops, inputs)}
        units = (inputs.candidates, inputs.num_units)
        return self.ops.select(self._held[ranked], *units, inputs.counts)

    def adaptive(self, plan: RowPlan, coverage: float, pooled: bool) -> Selection:
        """What every row reads until it covers a share of attention, below the plan's counts.

        Args:
            plan: its counts are ceilings.
            coverage: of attention, as far as a sample tells; 1 reads up to the ceiling.
            pooled: the KV heads of a row share their ceilings.
        """
        assert self.method.tells_shares, f"{self.variant.name} tells no shares of attention"
        ranked, rows, known = _ranked(plan), len(self.lengths), self.known(plan)
        told = replace(self.inputs(plan), reduction=Reduction.MEAN_SOFTMAX, known=known)
        if ranked not in self._shares:
            self._shares = {ranked: self.method.score(self.ops, told)}
        asked = torch.full((rows,), coverage)
        ranking = sampled_ranking(self.ops, self._shares[ranked], told, asked)
        units, all_pooled = (told.candidates, told.num_units), asked.new_full((rows,), pooled).int()
        counts = self.ops.allot(ranking.scores, *units, told.counts, ranking.lowest, all_pooled)
        return self.ops.select(ranking.scores, *units, counts)

    def known(self, plan: RowPlan) -> torch.Tensor:
        """Log-sum-exp float32 `[rows, H, G]` over what is read in any case."""
        kept = KeptUnits.of(self.candidates(plan), torch.from_numpy(plan.num_units).int())
        tails = torch.from_numpy(plan.tail).int()
        how = (kept, tails, self.layer.scale, self.variant.unit_size)
        return self.ops.known(self.layer.q, self.keys, *how)

    def inputs(self, plan: RowPlan) -> ScoreInputs:
        """What the method looks at under a plan."""
        num_units, counts = (torch.from_numpy(x).int() for x in (plan.num_units, plan.counts))
        return ScoreInputs(
            q=self.layer.q,
            keys=self.keys,
            fields=self._fields,
            index=self.index,
            candidates=self.candidates(plan),
            num_units=num_units,
            counts=counts,
            scale=self.layer.scale,
            reduction=Reduction.MAX_SOFTMAX,
            unit_size=self.variant.unit_size,
        )

    def certified(self, selection: Selection, plan: RowPlan) -> torch.Tensor | None:
        """Attention mass `[rows, H, G]` that the selection holds at least; None: no such bound."""
        inputs, tails = self.inputs(plan), torch.from_numpy(plan.tail).int()
        ceiling = self.method.ceiling(inputs)
        return None if ceiling is None else mass_floor(inputs, selection, tails, ceiling)

    def attend(self, selection: Selection, plan: RowPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """Output float32 `[rows, H, G, Dv]` and lse of what was selected.

        By the reference in float32: what is measured is what was left out, and not rounding.
        """
        q, tails = self.layer.q.float(), torch.from_numpy(plan.tail).int()
        return load_ops("reference").attend(
            *(q, self.keys, self.values, selection.physical, selection.counts),
            *(tails, self.layer.scale, self.variant.unit_size),
        )

    def candidates(self, plan: RowPlan) -> Candidates:
        """The units that rows of a plan rank."""
        units = torch.arange(len(self.keys) // self.variant.unit_size, dtype=torch.int32)
        table = units.expand(len(self.lengths), -1).contiguous()
        begin, end = (torch.from_numpy(x).int() for x in (plan.begin, plan.end))
        return Candidates(table, begin, end)

    def _field(self, summary: PageSummary) -> torch.Tensor:
        units = len(self.keys) // (summary.tokens or self.variant.unit)
        heads, width = self.keys.shape[1], summary.width or self.keys.shape[2]
        field = self.keys.new_zeros(units, heads, len(summary.planes), width)
        self.ops.summarise(summary, self.keys, field, torch.arange(units))
        return rounded(field, summary.planes) if self.variant.eight_bit else field

    def _index(self) -> SegmentIndex | ResidualIndex | SegmentBounds | None:
        summary = self.method.segments(self.variant.index)
        if summary is None:
            return None
        size, count = summary.segment_size, len(self.layer.keys) // summary.segment_size
        ends = torch.arange(1, count + 1) * size
        whole = ends[None] <= torch.from_numpy(self.lengths)[:, None]
        table = torch.arange(count).expand_as(whole).masked_fill(~whole, -1).int()
        slots = torch.arange(count * size).view(count, size)
        if isinstance(summary, BoundSummary):
            return SegmentBounds(summary.page.summarise(self.keys[slots]), table, size)
        if isinstance(summary, ResidualSummary):
            skips = torch.tensor([SINKS, *[0] * (count - 1)])
            cache = self.keys[slots], self.values[slots]
            found = summary.build(self.ops.index_segments, *cache, skips)
            return ResidualIndex(**{n: a.contiguous() for n, a in found.items()}, table=table)
        assert isinstance(summary, CodeSummary)
        return self._coded(summary, slots, table)

    def _coded(
        self, summary: CodeSummary, slots: torch.Tensor, table: torch.Tensor
    ) -> SegmentIndex:
        (count, size), (_, heads, width), parts = slots.shape, self.keys.shape, summary.subspaces
        codes = torch.zeros(count, heads, parts, size, dtype=torch.uint8)
        books = self.keys.new_zeros(count, heads, parts, summary.codes, width // parts)
        index = SegmentIndex(codes, books, table)
        built = min(count, 1) if self.variant.inherited else count
        skips = torch.tensor([SINKS, *[0] * count])[:built]
        # Records are the same bits on every device that makes any.
        ops = self.ops if self.ops.has_segments else load_ops("reference")
        ops.index_segments(summary, self.keys, slots[:built], skips, index, torch.arange(built))
        for record in range(built, count):
            books[record] = books[0]
            codes[record] = encode(self.keys[slots[record]], Codebook(books[0])).permute(1, 2, 0)
        return index


def _ranked(plan: RowPlan) -> object:
    """What scores depend on in a plan: sinks and window are not ranked."""
    return plan.begin.tobytes(), plan.end.tobytes()
