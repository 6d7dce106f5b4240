"""Methods that choose single tokens by codes: what the kernel benchmarks read and time of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.layers import BUDGET, DIM, HEADS, PAGE_SIZE, SINK_UNITS, WINDOW_UNITS, Layers
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.page_metadata import SINKS
from sgl_sparsekv.selection import IndexOptions, load_method
from sgl_sparsekv.selection.residual_pq import ResidualPQ
from sgl_sparsekv.summaries import CodeSummary, ResidualSummary
from sgl_sparsekv.types import Candidates, Reduction, ResidualIndex, SegmentIndex, Selection

Summary = CodeSummary | ResidualSummary
Index = SegmentIndex | ResidualIndex
METHODS = {
    name: load_method(name).segments(IndexOptions())
    for name in ("clusterkv", "pqcache", "residual_pq")
}
"""Method -> what its records hold, by default."""


@dataclass(frozen=True)
class CodedLayers:
    """Records of all layers for one batch, and the tokens to rank.

    Attributes:
        layers: queries, K and V.
        indices: records of each layer; every segment of every row has one.
        candidates: all tokens but sinks and window.
        num_units: int32 `[rows]`, tokens.
        counts: int32 `[rows]`, tokens of the budget.
        tails: int32 `[rows]`, ones.
        scale: softmax scale.
    """

    layers: Layers
    indices: list[Index]
    candidates: Candidates
    num_units: torch.Tensor
    counts: torch.Tensor
    tails: torch.Tensor
    scale: float

    @staticmethod
    def make(ops: Ops, layers: Layers, summary: Summary, scale: float) -> "CodedLayers":
        """Index every layer by `ops`."""
        batch, context = layers.q.shape[0], layers.context
        tokens = torch.arange(batch * context, dtype=torch.int32).view(batch, context)
        caches = zip(layers.keys, layers.values, strict=True)
        indices = [indexed(ops, summary, cache, context) for cache in caches]

        def full(value: int) -> torch.Tensor:
            return torch.full((batch,), value, dtype=torch.int32)

        begin, end = SINK_UNITS * PAGE_SIZE, context - WINDOW_UNITS * PAGE_SIZE
        candidates = Candidates(tokens, full(begin), full(end))
        counts = full(min(BUDGET, context))
        return CodedLayers(layers, indices, candidates, full(context), counts, full(1), scale)

    def score(self, ops: Ops, i: int) -> torch.Tensor:
        """Scores of the i-th layer, counted round."""
        index, (keys, _) = self.indices[i % len(self.indices)], self.layers.pool(i)
        reduction = Reduction.MAX_SOFTMAX
        inputs = (self.layers.q, keys, index, self.candidates, self.scale, reduction)
        reach = self.counts * ResidualPQ.REACH if self.estimates else None
        return ops.score_codes(*inputs, reach=reach)

    def select(self, ops: Ops, scores: torch.Tensor) -> Selection:
        """The budget's best tokens."""
        return ops.select(scores, self.candidates, self.num_units, self.counts)

    def attend(self, ops: Ops, i: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over listed tokens of the i-th layer."""
        keys, values = self.layers.pool(i)
        args = (table, self.counts, self.tails, self.scale, 1)
        return ops.attend(self.layers.q, keys, values, *args)

    @property
    def estimates(self) -> bool:
        """Whether the records answer for what is not read."""
        return isinstance(self.indices[0], ResidualIndex)

    def estimate(self, ops: Ops, i: int, selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
        """What the i-th layer does not read of a selection."""
        index = self.indices[i % len(self.indices)]
        assert isinstance(index, ResidualIndex)
        return ops.estimate(self.layers.q, index, self.candidates, selection, self.scale, 1)

    def decode(self, ops: Ops, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole step of the i-th layer."""
        selection = self.select(ops, self.score(ops, i))
        state = self.attend(ops, i, selection.physical)
        if not self.estimates:
            return state
        return ops.merge(*state, *self.estimate(ops, i, selection))

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        scores = [self.score(ops, i) for i in range(len(self.indices))]
        chosen = [self.select(ops, one) for one in scores]
        calls: dict[str, Callable[[int], object]] = {
            "decode_sparse": lambda i: self.decode(ops, i),
            "score": lambda i: self.score(ops, i),
            "select": lambda i: self.select(ops, scores[i % len(scores)]),
            "attend": lambda i: self.attend(ops, i, chosen[i % len(chosen)].physical),
        }
        if self.estimates:
            calls["estimate"] = lambda i: self.estimate(ops, i, chosen[i % len(chosen)])
        return calls

    def sizes(self) -> dict[str, int]:
        """Bytes that each call must read."""
        index, rows = self.indices[0], self.layers.q.shape[0]
        tokens = rows * self.layers.context
        records, rest, clusters = index.codes.nbytes + index.codebooks.nbytes, 0, 0
        if isinstance(index, ResidualIndex):
            opened = min(tokens, int(self.counts.sum()) * ResidualPQ.REACH)
            clusters = index.centroids.nbytes + index.ends.nbytes + index.scales.nbytes
            records = (index.codes.nbytes + index.places.nbytes) * opened // tokens
            records += index.codebooks.nbytes + clusters
            rest = index.values.nbytes + index.labels.nbytes
        chosen = int(self.counts.sum()) * 2 * HEADS * DIM * 2
        return {
            "decode_sparse": records + rest + chosen,
            "score": records,
            "select": HEADS * tokens * 4,
            "attend": chosen,
            "estimate": clusters + rest,
        }

    def gate(self, ops: Ops) -> None:
        """Judge score, select, attend and the estimate of one layer by the reference.

        Raises:
            AssertionError: they differ by more than rounding.
        """
        reference = load_ops("reference")
        scores = self.score(ops, 0)
        torch.testing.assert_close(scores, self.score(reference, 0), atol=1e-4, rtol=1e-5)
        best = self.select(reference, scores)
        table = best.physical
        assert torch.equal(self.select(ops, scores).physical, table), "selection differs"
        both = (ops, reference)
        pairs = [*zip(*(self.attend(o, 0, table) for o in both), strict=True)]
        if self.estimates:
            pairs += zip(*(self.estimate(o, 0, best) for o in both), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=2.0**-7)


def indexed(
    ops: Ops, summary: Summary, cache: tuple[torch.Tensor, torch.Tensor], context: int
) -> Index:
    """Records of all segments of rows of `context` tokens each, in order.

    Args:
        ops: the device.
        summary: what a record holds.
        cache: K and V `[slots, H, D]` of the rows.
        context: tokens of a row, in whole segments.
    """
    keys, values = cache
    segments = context // summary.segment_size
    records = keys.shape[0] // context * segments
    slots, skips = jobs(summary, keys.shape[0], segments)
    if isinstance(summary, ResidualSummary):
        arrays = summary.build(ops.index_segments, keys[slots], values[slots], skips)
        table = ids(records).int().view(-1, segments)
        return ResidualIndex(**{n: a.contiguous() for n, a in arrays.items()}, table=table)
    index = empty(summary, records, keys, segments)
    ops.index_segments(summary, keys, slots, skips, index, ids(records))
    return index


def empty(summary: CodeSummary, records: int, keys: torch.Tensor, segments: int) -> SegmentIndex:
    """Room for the records of rows with so many segments each."""
    shape = (records, HEADS, summary.subspaces)
    codes = torch.empty(*shape, summary.segment_size, dtype=torch.uint8)
    books = keys.new_empty(*shape, summary.codes, DIM // summary.subspaces)
    return SegmentIndex(codes, books, ids(records).int().view(-1, segments))


def jobs(summary: Summary, slots: int, segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots of every segment and the tokens it does not learn from."""
    found = torch.arange(slots).view(-1, summary.segment_size)
    return found, SINKS * (ids(len(found)) % segments == 0)


def ids(count: int) -> torch.Tensor:
    """int64 `[count]`."""
    return torch.arange(count)
