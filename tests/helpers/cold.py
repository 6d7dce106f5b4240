"""What a request selects and reads when it is the only one there ever was."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.page_metadata import SINKS, write_records
from sgl_sparsekv.segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from sgl_sparsekv.selection import IndexOptions, load_method
from sgl_sparsekv.selection.sampling import sampled_ranking
from sgl_sparsekv.summaries import BoundSummary, PageSummary, ResidualSummary, SegmentSummary
from sgl_sparsekv.types import Candidates, KeptUnits, Ranking, Reduction, ScoreInputs, Selection

from .toy_model import DIM, GROUP, HEADS, LAYERS, SCALE, ToyModel


def always_kept(length: int, options: RequestOptions, unit: int, own: int = 0) -> set[int]:
    """Units that hold a sink, a token of the window, or the newest token.

    Args:
        length: tokens.
        options: of the request.
        unit: the server's unit, which is kept whole.
        own: what the answer counts in; 0: the server's unit.
    """
    sinks = {p // unit for p in range(min(options.sink, length))}
    window = {p // unit for p in range(max(length - options.window, 0), length)}
    kept = sinks | window | {(length - 1) // unit}
    own = own or unit
    return {p // own for u in kept for p in range(u * unit, min(length, (u + 1) * unit))}


def units_to_keep(length: int, options: RequestOptions, unit: int) -> int:
    """As many units, the tail among them, as hold no more tokens than the budget."""
    total, budget = -(-length // unit), options.budget_tokens(length)
    tail = length - (total - 1) * unit
    if tail > budget:
        return 1
    return min(total, 1 + (budget - tail) // unit)


def leaves_out(length: int, options: RequestOptions, unit: int) -> bool:
    """Whether a step over `length` tokens reads less than everything in some layer."""
    method = load_method(options.method)
    own = method.unit_size or unit
    every = method.dense or options.dense_layers >= LAYERS
    return not every and units_to_keep(length, options, own) < -(-length // own)


def best_units(scores: torch.Tensor, kept: set[int], count: int) -> list[list[int]]:
    """Brute force: `kept`, then the best of `[H, U]`, equal scores to the lower unit."""
    chosen = []
    for head in scores.tolist():
        rest = sorted((-score, unit) for unit, score in enumerate(head) if unit not in kept)
        better = [unit for _, unit in rest[: max(0, count - len(kept))]]
        chosen.append(sorted({*kept, *better}))
    return chosen


@dataclass
class ColdRun:
    """One request on an empty machine: its tokens lie in order from slot 0 on.

    Attributes:
        model: supplies keys, values and queries.
        ops: the device.
        unit: tokens per unit.
        paths: path of each position, at least as many as any length asked for.
        options: of the request.
        index: how segments are indexed.
    """

    model: ToyModel
    ops: Ops
    unit: int
    paths: list[int]
    options: RequestOptions
    index: IndexOptions

    @property
    def own(self) -> int:
        """Tokens of what the method selects."""
        return load_method(self.options.method).unit_size or self.unit

    def ranking(self, layer: int, length: int, indexed: list[bool]) -> Ranking:
        """Scores `[H, U]` in the step that brings the context to `length` tokens, and the lowest
        that is read `[H]`.

        Args:
            layer: counted from 0.
            length: tokens.
            indexed: which whole segments have a record.
        """
        method, own = load_method(self.options.method), self.own
        total = -(-length // own)
        kept = sorted(always_kept(length, self.options, self.unit, own))
        rest = [u for u in range(total) if u not in kept]
        begin, end = (rest[0], rest[-1] + 1) if rest else (0, 0)
        keys = self.model.keys(layer, self.paths[:length])
        padded = -(-length // self.unit) * self.unit - length
        keys = torch.cat((keys, keys.new_zeros(padded, *keys.shape[1:])))
        fields = {s.name: self._field(s, keys, length) for s in method.summaries}
        q = self.query(layer, length)[None]
        known, reduction = None, Reduction.MAX_SOFTMAX
        if self.options.adaptive:
            known, reduction = self._known(layer, length, q), Reduction.MEAN_SOFTMAX
        inputs = ScoreInputs(
            q=q,
            keys=keys,
            fields=fields,
            index=self._index(method.segments(self.index), layer, keys, indexed),
            candidates=Candidates(
                torch.arange(total, dtype=torch.int32)[None],
                torch.tensor([begin], dtype=torch.int32),
                torch.tensor([end], dtype=torch.int32),
            ),
            num_units=torch.tensor([total], dtype=torch.int32),
            counts=torch.tensor([units_to_keep(length, self.options, own)], dtype=torch.int32),
            scale=SCALE,
            reduction=reduction,
            unit_size=own,
            known=known,
        )
        scores = method.score(self.ops, inputs)
        if known is None:
            return Ranking(scores[0])
        asked = self.options.coverage
        coverage = torch.tensor([1.0 if asked is None else asked])
        return sampled_ranking(self.ops, scores, inputs, coverage).row(0)

    def _known(self, layer: int, length: int, q: torch.Tensor) -> torch.Tensor:
        """lse `[1, H, G]` over what is read in any case, as the method's scores measure it."""
        keys = self.model.keys(layer, self.paths[:length])
        keys = torch.nn.functional.pad(keys, (0, 0, 0, 0, 0, self.unit))
        kept = sorted(always_kept(length, self.options, self.unit, self.own))
        table = torch.tensor([kept], dtype=torch.int32)
        count = torch.tensor([len(kept)], dtype=torch.int32)
        tail = torch.tensor([(length - 1) % self.own + 1], dtype=torch.int32)
        whole = len(keys) // self.own * self.own
        return self.ops.known(q, keys[:whole], KeptUnits(table, count), tail, SCALE, self.own)

    def _adaptive(self, ranking: Ranking, length: int) -> list[list[int]]:
        """Units `[H][n]` as far as the coverage and the pool of the KV heads go."""
        scores, total, own = ranking.scores, ranking.scores.shape[1], self.own
        kept = always_kept(length, self.options, self.unit, own)
        rest = [u for u in range(total) if u not in kept]
        begin, end = (rest[0], rest[-1] + 1) if rest else (0, 0)

        def one(value: int) -> torch.Tensor:
            return torch.tensor([value], dtype=torch.int32)

        pooled = one(self.options.budget_split == "heads")
        candidates = Candidates(torch.arange(total).int()[None], one(begin), one(end))
        ceiling = one(units_to_keep(length, self.options, own))
        assert ranking.lowest is not None
        lowest = ranking.lowest[None]
        found = self.ops.allot(scores[None], candidates, one(total), ceiling, lowest, pooled)
        counts = found[0].tolist()
        if self.options.coverage is None:
            assert sum(counts) == HEADS * int(ceiling), "the pool is not spent"
        return [
            best_units(head[None], kept, count)[0]
            for head, count in zip(scores, counts, strict=True)
        ]

    def _field(self, summary: PageSummary, keys: torch.Tensor, length: int) -> torch.Tensor:
        size = summary.tokens or self.unit
        shape = (len(keys) // size, HEADS, *summary.shape(keys.shape[-1]))
        field = torch.full(shape, summary.poison, dtype=summary.dtype or keys.dtype)
        full = length // self.unit * self.unit // size
        self.ops.summarise(summary, keys, field, torch.arange(full))
        return field

    def _index(
        self, summary: SegmentSummary | None, layer: int, keys: torch.Tensor, indexed: list[bool]
    ) -> SegmentIndex | ResidualIndex | SegmentBounds | None:
        """Records of the whole segments of `keys` `[L, H, D]`."""
        if summary is None:
            return None
        length = len(indexed) * summary.segment_size
        whole = range(length // summary.segment_size)
        values = self.model.values(layer, self.paths[:length])
        built = [segment_record(self.ops, summary, nth, keys, values) for nth in whole]
        built.append(blank_record(summary, keys.dtype))
        arrays = {name: torch.stack([record[name] for record in built]) for name in built[0]}
        table = torch.tensor([[i if there else -1 for i, there in enumerate(indexed)]])
        if isinstance(summary, BoundSummary):
            return SegmentBounds(arrays["planes"], table.int(), summary.segment_size)
        if isinstance(summary, ResidualSummary):
            return ResidualIndex(**arrays, table=table.int())
        return SegmentIndex(**arrays, table=table.int())

    def query(self, layer: int, length: int) -> torch.Tensor:
        """Q `[H, G, D]` of the newest token."""
        q = self.model.queries(layer, self.paths[length - 1 : length])
        return q.view(HEADS, GROUP, -1)

    def selection(
        self, layer: int, length: int, scored_at: int, indexed: list[bool]
    ) -> list[list[int]]:
        """Logical units `[H][n]`, with scores of the step at `scored_at` tokens."""
        total = -(-length // self.own)
        scores = torch.full((HEADS, total), -torch.inf)
        old = self.ranking(layer, scored_at, indexed)
        scores[:, : old.scores.shape[1]] = old.scores
        if self.options.adaptive:
            return self._adaptive(Ranking(scores, old.lowest), length)
        kept = always_kept(length, self.options, self.unit, self.own)
        return best_units(scores, kept, units_to_keep(length, self.options, self.own))

    def estimated(
        self, layer: int, length: int, units: list[list[int]], unit: int, indexed: list[bool]
    ) -> torch.Tensor:
        """Attention over `units`, and over the rest of the segments that are `indexed` by the
        weights and values of their clusters: `[H, G, D]`."""
        keys = self.model.keys(layer, self.paths[:length])
        summary = load_method("residual_pq").segments(self.index)
        count = length // summary.segment_size
        index = self._index(summary, layer, keys, indexed[:count])
        kept = always_kept(length, self.options, self.unit, unit)
        rest = [u for u in range(-(-length // unit)) if u not in kept]
        begin, end = (rest[0] * unit, (rest[-1] + 1) * unit) if rest else (0, 0)
        spans = Candidates(
            torch.arange(length, dtype=torch.int32)[None],
            *(torch.tensor([x], dtype=torch.int32) for x in (begin, end)),
        )
        counts = torch.tensor([[len(chosen) for chosen in units]], dtype=torch.int32)
        listed = torch.full((1, HEADS, int(counts.max())), -1, dtype=torch.int32)
        for head, chosen in enumerate(units):
            listed[0, head, : len(chosen)] = torch.tensor(chosen)
        tokens = units_to_keep(length, self.options, unit) * unit
        reach = torch.tensor([tokens * summary.REACH], dtype=torch.int32)
        q, read = self.query(layer, length)[None], Selection(listed, listed, counts)
        how = (SCALE, Reduction.MAX_SOFTMAX, reach, unit)
        weights = self.ops.weigh(q, index, spans, read, *how)[0].double()
        out, lse = self._states(layer, length, units, unit)
        values = [index.cluster_values(nth).double() for nth in range(count)]
        answers = torch.cat([out.new_zeros(HEADS, 0, out.shape[-1]), *values], 1)
        shares = torch.cat((lse[..., None], weights), -1).softmax(-1)
        return shares[..., :1] * out + shares[..., 1:] @ answers

    def attention(self, layer: int, length: int, units: list[list[int]], unit: int) -> torch.Tensor:
        """Attention in float64 over the tokens of `units` `[H][n]` of `unit`: `[H, G, D]`."""
        return self._states(layer, length, units, unit)[0]

    def _states(
        self, layer: int, length: int, units: list[list[int]], unit: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention, and its log-sum-exp `[H, G]`."""
        keys = self.model.keys(layer, self.paths[:length]).double()
        values = self.model.values(layer, self.paths[:length]).double()
        q = self.query(layer, length).double()
        out, lse = torch.empty_like(q), torch.empty_like(q[..., 0])
        for head, chosen in enumerate(units):
            tokens = torch.tensor(
                [p for u in chosen for p in range(u * unit, min(length, (u + 1) * unit))]
            )
            logits = q[head] @ keys[tokens, head].T * SCALE
            out[head] = logits.softmax(-1) @ values[tokens, head]
            lse[head] = logits.logsumexp(-1)
        return out, lse


_records: dict[object, dict[str, torch.Tensor]] = {}


def blank_record(summary: SegmentSummary, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arrays `[H, ...]` of a record of zeros."""
    return {
        name: torch.zeros(HEADS, *shape, dtype=own or dtype)
        for name, (shape, own) in summary.shapes(DIM, DIM).items()
    }


def segment_record(
    ops: Ops, summary: SegmentSummary, nth: int, keys: torch.Tensor, values: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Arrays `[H, ...]` of the `nth` segment's record, kept by the keys they depend on.

    Args:
        ops: the device.
        summary: what is stored.
        nth: number of the segment in the sequence.
        keys: K `[L, H, D]` in position order.
        values: V, likewise.
    """
    size = summary.segment_size
    own, its = (rows[nth * size : (nth + 1) * size] for rows in (keys, values))
    bits = torch.cat((own, its), -1).float().numpy().tobytes()
    key = (summary, nth == 0, keys.dtype, bits)
    if key not in _records:
        arrays = {name: a[None] for name, a in blank_record(summary, keys.dtype).items()}
        slots, skips = torch.arange(size)[None], torch.tensor([SINKS * (nth == 0)])
        write_records(ops, summary, (own, its), slots, skips, arrays, torch.tensor([0]))
        _records[key] = {name: array[0] for name, array in arrays.items()}
    return _records[key]
