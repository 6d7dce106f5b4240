"""`sgl_sparsekv.fused_ops.FusedDecode` in plain torch, row by row: what the fused kernels must do.

State is where the kernels keep it (the table of options, stamps, the pending list), so a life cycle
that is right here and kernels that equal this give a right server.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from sgl_sparsekv.kernels.triton.buffers import VIEW_FIELDS, allocate_views, of_records
from sgl_sparsekv.kernels.triton.cover_buffers import allocate_cover
from torch.nn.utils.rnn import pad_sequence

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata.records import write_records
from sgl_sparsekv.segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from sgl_sparsekv.selection.clusterkv import ClusterKV
from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.oracle import Oracle
from sgl_sparsekv.selection.pqcache import PQCache
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.quest_int8 import QuestInt8
from sgl_sparsekv.selection.sampling import covering_selection
from sgl_sparsekv.selection.shadowkv import LANDMARK, MISFIT, ShadowKV
from sgl_sparsekv.selection.two_level import BOUNDS, SEGMENT, TwoLevel, TwoLevelExact
from sgl_sparsekv.summaries import ResidualSummary
from sgl_sparsekv.types import (
    Candidates,
    Goal,
    KeptUnits,
    Reduction,
    ScoreInputs,
    Selection,
    StepShape,
)

CODED = ("clusters", "products")
REST = "residuals"
LEVELS = {method.formula: method for method in (TwoLevel(), TwoLevelExact())}
PLAIN = ("nothing", "position", "min_max", "mean_std", "exact", "landmark", "own")
FORMULAS = (*PLAIN, *CODED, *LEVELS, REST)
RECORDS = {name: name for name in (*CODED, REST)} | dict.fromkeys(LEVELS, BOUNDS.name)
"""Records that a formula reads."""
COVERED = {m.formula: m for m in (Quest(), MeanStd(), Oracle(), ClusterKV(), PQCache())}
"""Formulas whose scores tell shares."""
SUMMARIES = {
    s.name: s for s in (Quest.summary, MeanStd.summary, QuestInt8.summary, LANDMARK, MISFIT)
}


class TorchFused:
    """See `FusedDecode`; `selected` hears what a row read in a layer: its place, the selection,
    whether that is everything, tokens of a unit, records, and those that answer for the rest;
    `caches_of` gives K and V of all layers."""

    nbytes = 0

    def __init__(
        self,
        shape: StepShape,
        selected: Callable[..., None],
        caches_of: Callable[[], list[tuple[torch.Tensor, torch.Tensor]]],
    ) -> None:
        self.shape = shape
        self.selected = selected
        self.caches_of = caches_of
        self.ops = load_ops("reference")
        self.geometry = Geometry(shape.page_size, shape.unit_size)
        self.buffers = SimpleNamespace(
            options=torch.zeros(shape.requests, 8, dtype=torch.int32),
            ratios=torch.zeros(shape.requests, dtype=torch.float64),
            views=None if shape.views is None else allocate_views(shape, shape.views),
            records=of_records(shape) if shape.records else None,
            holds=SimpleNamespace(asked=torch.zeros(shape.requests, 3, dtype=torch.int32)),
            cover=allocate_cover(shape),
            sampled=torch.zeros(shape.max_rows, dtype=torch.int32),
            masses=torch.full(
                (shape.max_rows, len(shape.measured), shape.heads, shape.group), torch.nan
            ),
        )
        self.held: dict[int, tuple[int, int, dict[int, torch.Tensor]]] = {}
        self.kinds = {kind.summary.name: i for i, kind in enumerate(shape.records)}
        self.pending = torch.empty(0, dtype=torch.int64)
        self.rows: list[dict[str, Any]] = []

    def formula(self, name: str) -> int:
        """Place in `FORMULAS`."""
        return FORMULAS.index(name)

    def forget(self, sealed: torch.Tensor, slots: torch.Tensor) -> None:
        """See `FusedDecode.forget`."""
        slots = slots[slots >= self.shape.page_size]
        sealed[self.geometry.units_of_pages(self.geometry.page_starts(slots))] = False
        sealed[self.geometry.unit_of(slots)] = False
        self.pending = self.pending[:0]
        for page in self.geometry.page_of(slots).unique().tolist():
            self.forget_record(page)

    def forget_record(self, page: int) -> None:
        """Those of segments that end with a page."""
        for kind in self.kinds.values():
            held = self.buffers.records
            of_page, page_of = held.of_page[kind], held.page_of[kind]
            if of_page[page] >= 0:
                page_of[of_page[page]], of_page[page] = -1, -1

    def build(
        self,
        name: str,
        jobs: torch.Tensor,
        req_to_token: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        pointers: tuple[torch.Tensor, torch.Tensor],
        arrays: Mapping[str, torch.Tensor],
        skip: int,
    ) -> None:
        """See `FusedDecode.build`: layer after layer, by the reference."""
        kind = self.kinds[name]
        summary = self.shape.records[kind].summary
        for request, nth, _ in jobs.tolist():
            size = summary.segment_size
            slots = req_to_token[request, nth * size : (nth + 1) * size].long()
            record = self.reserve(kind, int(self.geometry.page_of(slots[-1:])))
            if record < 0:
                continue
            skips = torch.tensor([skip * (nth == 0)])
            for layer, held in enumerate(self.caches_of()):
                into = {key: array[layer] for key, array in arrays.items()}
                at = torch.tensor([record])
                write_records(self.ops, summary, held, slots[None], skips, into, at)

    def reserve(self, kind: int, page: int) -> int:
        """A record for a page that has none, else -1."""
        held, capacity = self.buffers.records, self.shape.records[kind].capacity
        of_page, page_of = held.of_page[kind], held.page_of[kind]
        if page < 1 or of_page[page] >= 0:
            return -1
        first = int(held.next[kind])
        ring = [(first + i) % capacity for i in range(capacity)]
        record = next((r for r in ring if page_of[r] < 0), first)
        held.told[kind, 0] += 1
        if page_of[record] >= 0:
            of_page[page_of[record]] = -1
            held.told[kind, 1] += 1
        of_page[page], page_of[record] = record, page
        held.next[kind] = (record + 1) % capacity
        return record

    def arrange(self, order: torch.Tensor) -> None:
        """See `FusedDecode.arrange`: plain torch reads every row by itself."""
        assert torch.equal(order.sort().values, torch.arange(len(order), dtype=torch.int32))

    def mark(self, sampled: torch.Tensor) -> None:
        """See `FusedDecode.mark`."""
        self.buffers.sampled[: len(sampled)] = sampled

    def begin(
        self,
        sealed: torch.Tensor,
        request_rows: torch.Tensor,
        lengths: torch.Tensor,
        req_to_token: torch.Tensor,
    ) -> None:
        """See `FusedDecode.begin`."""
        self.rows = []
        for request, length in zip(request_rows.tolist(), lengths.tolist(), strict=True):
            slots = req_to_token[request, :length].long()
            plan, units = self._plan(request, length), self.geometry.unit_table(slots)
            own = self.geometry.unit_table(slots, plan["unit"])
            row = {"units": own, "slots": slots, "view": self._record(request)}
            row |= self._holding(request, length, plan["formula"])
            row["records"] = {name: self._records(kind, slots) for name, kind in self.kinds.items()}
            self.rows.append(plan | row)
            full = units[: length // self.shape.unit_size]
            full = full[full >= self.geometry.units_per_page]
            self.pending = torch.unique(torch.cat((self.pending, full[~sealed[full]])))

    def _holding(self, request: int, length: int, formula: str) -> dict[str, Any]:
        """Scores of its period that a row chooses by, and those that it is to hold."""
        every, place, owner = self.buffers.holds.asked[request].tolist()
        found: dict[str, Any] = {"held": None, "draft": None}
        if place >= 0 and every > 1 and formula not in ("nothing", "position"):
            of, since, scores = self.held.get(place, (-1, 0, {}))
            if of == owner and since <= length < since + every:
                found["held"] = scores
            else:
                found["draft"] = (place, owner, length, {})
        return found

    def _plan(self, request: int, length: int) -> dict[str, Any]:
        options = self.buffers.options[request].tolist()
        formula, budget, least, sink, window, dense, finer, estimates = options
        ratio, unit = float(self.buffers.ratios[request]), self.shape.unit_size
        if ratio:
            budget = max(least, int(ratio * length))
        end = min(max(length - window, 0) // unit, self.geometry.num_units(length) - 1)
        own, begin = unit >> finer, min(-(-sink // unit), end)
        units, tail = -(-length // own), (length - 1) % own + 1
        count = min(units, max((budget - tail) // own + 1, 1))
        name = FORMULAS[formula] if count < units else "nothing"
        return {
            "formula": name,
            "unit": own,
            "begin": begin << finer,
            "end": end << finer,
            "count": count,
            "tail": tail,
            "dense_layers": dense,
            "estimates": bool(estimates),
            "goal": 0.0 if self.buffers.cover is None else float(self.buffers.cover.asked[request]),
        }

    def summarise(self, keys: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> None:
        """See `FusedDecode.summarise`."""
        for name, field in fields.items():
            units = self.geometry.finer(self.pending, SUMMARIES[name].tokens)
            self.ops.summarise(SUMMARIES[name], keys, field, units)

    def decode(
        self,
        sealed: torch.Tensor,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        scale: float,
        paged: object = None,
        records: Mapping[str, Mapping[str, torch.Tensor]] = {},
    ) -> torch.Tensor:
        """See `FusedDecode.decode`."""
        self.summarise(keys, fields)  # a unit without a stamp has the fields its keys give
        out, lse = [], []
        for i, row in enumerate(self.rows):
            view = self._view(row, layer, q[i])
            chosen, unit, tail = view, 1, 1
            if chosen is None:
                chosen = self._choose(row, layer, q[i : i + 1], keys, fields, scale, records)
                unit, tail = row["unit"], row["tail"]
            dense = view is None and self._dense(row, layer)
            if row["goal"] and not dense and view is None:
                self.buffers.cover.told[i, layer - self.shape.covered.start] = chosen.counts[0]
            read = row["records"].get(RECORDS.get(row["formula"], ""))
            rest = row["records"][REST] if row["estimates"] and not dense else None
            self.selected(layer, i, chosen, dense, unit, read, rest)
            how = (chosen.physical, chosen.counts, one(tail), scale, unit)
            part, sums = self.ops.attend(q[i : i + 1], keys, values, *how)
            if rest is not None:
                part = self._estimated(row, q[i : i + 1], chosen, records[REST], scale, part, sums)
            out.append(part)
            lse.append(sums)
        self.lse = torch.cat(lse)
        return torch.cat(out)

    def _estimated(
        self,
        row: dict[str, Any],
        q: torch.Tensor,
        chosen: Selection,
        arrays: Mapping[str, torch.Tensor],
        scale: float,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> torch.Tensor:
        """What one row reads, joined with clusters that answer for the rest."""
        index, unit = ResidualIndex(**arrays, table=row["records"][REST]), row["unit"]
        spans = Candidates(row["slots"][None].int(), one(row["begin"]), one(row["end"]))
        spans = Candidates(spans.unit_table, spans.begin * unit, spans.end * unit)
        reach = one(row["count"] * unit * ResidualSummary.REACH)
        how = (scale, self.shape.reduction, reach, unit)
        weights = self.ops.weigh(q, index, spans, chosen, *how)
        return self.ops.estimate(weights, index, out, lse)[0]

    def measure(self, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        """See `FusedDecode.measure`."""
        nth = layer - self.shape.measured.start
        for i, row in enumerate(self.rows):
            if self.buffers.sampled[i] and layer >= row["dense_layers"]:
                logits = torch.einsum("hgd,lhd->hgl", q[i], keys[row["slots"]]) * scale
                share = (self.lse[i] - logits.logsumexp(-1)).exp()
                self.buffers.masses[i, nth] = share.clamp(max=1)

    def _records(self, kind: int, slots: torch.Tensor) -> torch.Tensor:
        """int32 `[1, segments]`, of whole ones."""
        size = self.shape.records[kind].summary.segment_size
        pages = self.geometry.page_of(slots[size - 1 :: size])
        return self.buffers.records.of_page[kind, pages][None]

    def _record(self, request: int) -> torch.Tensor | None:
        views = self.buffers.views
        number = -1 if views is None else int(views.of_request[request])
        return None if number < 0 else views.records[number]

    def _view(self, row: dict[str, Any], layer: int, q: torch.Tensor) -> Selection | None:
        """Note the queries `[H, G, D]` of a row that has a view; what it lists, in tokens."""
        record, slots, views = row["view"], row["slots"], self.buffers.views
        if record is None or layer < row["dense_layers"]:
            return None
        made, first, size = record[:VIEW_FIELDS].tolist()
        nth, length = layer - self.shape.views.first_layer, len(slots)
        views.queries[first + nth * size + (length - 1) % size] = q.flatten()
        if not 0 < made < length:
            return None
        spans = record[VIEW_FIELDS:][2 * nth * len(q) : 2 * (nth + 1) * len(q)].view(-1, 2)
        since = torch.arange(made, length)
        lists = [torch.cat((views.kept[a : a + n], since)).int() for a, n in spans.tolist()]
        logical = pad_sequence(lists, batch_first=True, padding_value=-1)
        physical = slots[logical.long()].masked_fill(logical < 0, 0).int()
        counts = torch.tensor([len(one) for one in lists], dtype=torch.int32)
        return Selection(logical[None], physical[None], counts[None])

    def end(self, sealed: torch.Tensor) -> None:
        """See `FusedDecode.end`."""
        sealed[self.pending] = True
        self.pending = self.pending[:0]
        for row in self.rows:
            if row["draft"] is not None and row["draft"][3]:
                place, *said = row["draft"]
                self.held[place] = tuple(said)

    def _dense(self, row: dict[str, Any], layer: int) -> bool:
        return row["formula"] == "nothing" or layer < row["dense_layers"]

    def _choose(
        self,
        row: dict[str, Any],
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        scale: float,
        records: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> Selection:
        """What one row reads, in its own units."""
        total, heads = len(row["units"]), q.shape[1]
        table = row["units"][None].int()
        if self._dense(row, layer):
            logical = torch.arange(total, dtype=torch.int32).expand(1, heads, -1)
            return Selection(logical, table[:, None].expand(1, heads, -1), one(total))
        candidates = Candidates(table, one(row["begin"]), one(row["end"]))
        if row["goal"] and row["formula"] in COVERED:
            return self._cover(row, candidates, q, keys, fields, scale, records)
        how = (candidates, scale, self.shape.reduction)
        if row["held"] is not None:
            scores = torch.full((1, heads, total), -torch.inf)
            held = row["held"][layer]
            scores[..., : held.shape[-1]] = held
        elif row["formula"] == "position":
            scores = torch.arange(total).float().expand(1, heads, -1)
        elif row["formula"] == "exact":
            scores = self.ops.score_exact(q, keys, *how, self.shape.unit_size)
        elif row["formula"] == "landmark":
            numbers = (one(total), one(row["count"]), scale, self.shape.reduction, row["unit"])
            inputs = ScoreInputs(q, keys, fields, None, candidates, *numbers)
            scores = ShadowKV().score(self.ops, inputs)
        elif row["formula"] in LEVELS:
            numbers = (one(total), one(row["count"]), scale, self.shape.reduction, row["unit"])
            table = row["records"][BOUNDS.name]
            index = SegmentBounds(records[BOUNDS.name]["planes"], table, SEGMENT)
            inputs = ScoreInputs(q, keys, fields, index, candidates, *numbers)
            scores = LEVELS[row["formula"]].score(self.ops, inputs)
        elif row["formula"] == REST:
            index = ResidualIndex(**records[REST], table=row["records"][REST])
            reach = one(row["count"] * ResidualSummary.REACH)
            scores = self.ops.score_codes(q, keys, index, *how, None, reach)
        elif row["formula"] in CODED:
            arrays = records[row["formula"]]
            table = row["records"][row["formula"]]
            index = SegmentIndex(arrays["codes"], arrays["codebooks"], table)
            scores = self.ops.score_codes(q, keys, index, *how)
        else:
            name, own = row["formula"], self.shape.own
            name = own.name if own is not None and name == "own" else name
            scores = self.ops.score(SUMMARIES[name], q, fields[name], *how)
        if row["draft"] is not None:
            row["draft"][3][layer] = scores.clone()
        return self.ops.select(scores, candidates, one(total), one(row["count"]))

    def _cover(
        self,
        row: dict[str, Any],
        candidates: Candidates,
        q: torch.Tensor,
        keys: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        scale: float,
        records: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> Selection:
        """What one row with a goal reads."""
        total, index = one(len(row["units"])), None
        if row["formula"] in CODED:
            arrays, table = records[row["formula"]], row["records"][row["formula"]]
            index = SegmentIndex(arrays["codes"], arrays["codebooks"], table)
        kept = KeptUnits.of(candidates, total)
        known = self.ops.known(q, keys, kept, one(row["tail"]), scale, row["unit"])
        numbers = (total, one(row["count"]), scale, Reduction.MEAN_SOFTMAX, row["unit"])
        inputs = ScoreInputs(q, keys, fields, index, candidates, *numbers, known)
        scores = COVERED[row["formula"]].score(self.ops, inputs)
        goal = Goal(torch.tensor([row["goal"]]), one(0))
        return covering_selection(self.ops, scores, inputs, goal)


def one(value: int) -> torch.Tensor:
    """int32 `[1]`."""
    return torch.tensor([value], dtype=torch.int32)
