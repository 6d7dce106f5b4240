"""Methods that choose single tokens by codes: what the kernel benchmarks read and time of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.page_metadata import SINKS
from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.selection import IndexOptions, load_method
from sgl_sparsekv.selection.base import SelectionMethod
from sgl_sparsekv.summaries import CodeSummary, ResidualSummary
from sgl_sparsekv.types import Candidates, Reduction, Rest, ScoreInputs, Selection

from .layers import BUDGET, DIM, HEADS, PAGE_SIZE, SINK_UNITS, WINDOW_UNITS, Layers

Summary = CodeSummary | ResidualSummary
Index = SegmentIndex | ResidualIndex
State = tuple[torch.Tensor, torch.Tensor]
METHODS = {
    name: load_method(name).segments(IndexOptions())
    for name in ("clusterkv", "pqcache", "residual_pq")
}
"""Method -> what its records hold, by default."""


@dataclass(frozen=True)
class CodedLayers:
    """Records of all layers for one batch, and the tokens to rank.

    Attributes:
        name: the method's.
        layers: queries, K and V.
        indices: records of each layer; every segment of every row has one.
        candidates: all tokens but sinks and window.
        num_units: int32 `[rows]`, tokens.
        counts: int32 `[rows]`, tokens of the budget.
        tails: int32 `[rows]`, ones.
        scale: softmax scale.
    """

    name: str
    layers: Layers
    indices: list[Index]
    candidates: Candidates
    num_units: torch.Tensor
    counts: torch.Tensor
    tails: torch.Tensor
    scale: float

    @staticmethod
    def make(ops: Ops, layers: Layers, name: str, scale: float) -> "CodedLayers":
        """Index every layer by `ops`."""
        summary = METHODS[name]
        batch, context = layers.q.shape[0], layers.context
        tokens = torch.arange(batch * context, dtype=torch.int32).view(batch, context)
        caches = zip(layers.keys, layers.values, strict=True)
        indices = side_by_side([indexed(ops, summary, cache, context) for cache in caches])

        def full(value: int) -> torch.Tensor:
            return torch.full((batch,), value, dtype=torch.int32)

        begin, end = SINK_UNITS * PAGE_SIZE, context - WINDOW_UNITS * PAGE_SIZE
        candidates = Candidates(tokens, full(begin), full(end))
        counts = full(min(BUDGET, context))
        shape = (full(context), counts, full(1), scale)
        return CodedLayers(name, layers, indices, candidates, *shape)

    def inputs(self, i: int) -> ScoreInputs:
        """What the i-th layer, counted round, is ranked by."""
        return ScoreInputs(
            q=self.layers.q,
            keys=self.layers.pool(i)[0],
            fields={},
            index=self.indices[i % len(self.indices)],
            candidates=self.candidates,
            num_units=self.num_units,
            counts=self.counts,
            scale=self.scale,
            reduction=Reduction.MAX_SOFTMAX,
            unit_size=1,
        )

    def score(self, ops: Ops, i: int) -> torch.Tensor:
        """Scores of the i-th layer."""
        return self.method.score(ops, self.inputs(i))

    def select(self, ops: Ops, scores: torch.Tensor) -> Selection:
        """The budget's best tokens."""
        return ops.select(scores, self.candidates, self.num_units, self.counts)

    def attend(self, ops: Ops, i: int, table: torch.Tensor) -> State:
        """Attention over listed tokens of the i-th layer."""
        keys, values = self.layers.pool(i)
        args = (table, self.counts, self.tails, self.scale, 1)
        return ops.attend(self.layers.q, keys, values, *args)

    @property
    def method(self) -> SelectionMethod:
        """The method whose records these are."""
        return load_method(self.name)

    def choose(self, ops: Ops, i: int) -> tuple[Selection, torch.Tensor | None]:
        """What the i-th layer reads, and what weighs the rest, if it is estimated."""
        chosen = self.method.choose(ops, self.inputs(i))
        return chosen or (self.select(ops, self.score(ops, i)), None)

    def estimate(self, ops: Ops, i: int, weights: torch.Tensor, state: State) -> State:
        """What was read of the i-th layer, and the rest of it."""
        index = self.indices[i % len(self.indices)]
        assert isinstance(index, ResidualIndex)
        return ops.estimate(weights, index, *state)

    def decode(self, ops: Ops, i: int) -> State:
        """A whole step of the i-th layer."""
        selection, weights = self.choose(ops, i)
        if weights is None:
            return self.attend(ops, i, selection.physical)
        index = self.indices[i % len(self.indices)]
        assert isinstance(index, ResidualIndex)
        how = (self.tails, self.scale, 1, Rest(weights, index))
        return ops.attend_all(self.layers.q, self.layers.pool(i), selection, *how)

    def calls(self, ops: Ops) -> dict[str, Callable[[int], object]]:
        """The timed calls, each a function of the repeat's number."""
        count = len(self.indices)
        chosen = [self.choose(ops, i) for i in range(count)]
        calls: dict[str, Callable[[int], object]] = {
            "decode_sparse": lambda i: self.decode(ops, i),
            "attend": lambda i: self.attend(ops, i, chosen[i % count][0].physical),
        }
        rests = [weights for _, weights in chosen if weights is not None]
        if rests:
            states = [self.attend(ops, i, chosen[i][0].physical) for i in range(count)]
            calls["choose"] = lambda i: self.choose(ops, i)
            calls["estimate"] = lambda i: self.estimate(ops, i, rests[i % count], states[i % count])
            return calls
        scores = [self.score(ops, i) for i in range(count)]
        calls["score"] = lambda i: self.score(ops, i)
        calls["select"] = lambda i: self.select(ops, scores[i % count])
        return calls

    def sizes(self) -> dict[str, int]:
        """Bytes that each call must read."""
        index, rows = self.indices[0], self.layers.q.shape[0]
        tokens = rows * self.layers.context
        chosen = int(self.counts.sum()) * 2 * HEADS * DIM * 2
        if not isinstance(index, ResidualIndex):
            records = index.codes.nbytes + index.codebooks.nbytes
            sizes = {"score": records, "select": HEADS * tokens * 4, "attend": chosen}
            return sizes | {"decode_sparse": records + chosen}
        opened = min(tokens, int(self.counts.sum()) * ResidualSummary.REACH)
        records = index.centroids.nbytes + index.ends.nbytes + index.scales.nbytes
        records += index.codebooks.nbytes
        records += (index.codes.nbytes + index.places.nbytes) * opened // tokens
        sizes = {"choose": records, "attend": chosen, "estimate": index.values.nbytes}
        return sizes | {"decode_sparse": sum(sizes.values())}

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
        chosen, weights = self.choose(ops, 0)
        assert torch.equal(chosen.physical, table), "selection differs"
        if weights is not None:
            state, index = self.attend(ops, 0, table), self.indices[0]
            assert isinstance(index, ResidualIndex)
            how = (self.scale, Reduction.MAX_SOFTMAX, self.counts * ResidualSummary.REACH, 1)
            wanted = reference.weigh(self.layers.q, index, self.candidates, best, *how)
            pairs.append((weights, wanted))
            pairs += zip(*(self.estimate(o, 0, weights, state) for o in both), strict=True)
            whole = ops.attend_all(
                self.layers.q, self.layers.pool(0), chosen, self.tails, self.scale, 1,
                Rest(weights, index),
            )  # fmt: skip
            pairs.append((whole[0], self.estimate(ops, 0, weights, state)[0]))
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=1e-3, rtol=2.0**-7)


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


def side_by_side(indices: list[Index]) -> list[Index]:
    """The same in one array of each kind for all layers: a server's are as large, its pool's."""
    names = [name for name in vars(indices[0]) if name != "table"]
    arrays = {name: torch.stack([getattr(one, name) for one in indices]) for name in names}
    return [
        replace(one, **{name: array[nth] for name, array in arrays.items()})
        for nth, one in enumerate(indices)
    ]


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
