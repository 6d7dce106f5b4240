"""`sgl_sparsekv.fused_ops.FusedDecode` in plain torch, row by row: what the fused kernels must do.

State is where the kernels keep it (the table of options, stamps, the pending list), so a life cycle
that is right here and kernels that equal this give a right server.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from sgl_sparsekv.kernels.triton.buffers import VIEW_FIELDS, allocate_views
from torch.nn.utils.rnn import pad_sequence

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Candidates, Selection, StepShape

FORMULAS = ("nothing", "position", "min_max", "mean_std", "exact")
SUMMARIES = {"min_max": Quest.summary, "mean_std": MeanStd.summary}


class TorchFused:
    """See `FusedDecode`; `selected` hears what each layer read."""

    nbytes = 0

    def __init__(
        self,
        shape: StepShape,
        selected: Callable[[int, Selection, list[bool], dict[int, Selection | None]], None],
    ) -> None:
        self.shape = shape
        self.selected = selected
        self.ops = load_ops("reference")
        self.geometry = Geometry(shape.page_size, shape.unit_size)
        self.buffers = SimpleNamespace(
            options=torch.zeros(shape.requests, 6, dtype=torch.int32),
            ratios=torch.zeros(shape.requests, dtype=torch.float64),
            views=None if shape.views is None else allocate_views(shape, shape.views),
        )
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

    def arrange(self, order: torch.Tensor) -> None:
        """See `FusedDecode.arrange`: plain torch reads every row by itself."""
        assert torch.equal(order.sort().values, torch.arange(len(order), dtype=torch.int32))

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
            units = self.geometry.unit_table(req_to_token[request, :length].long())
            slots = req_to_token[request, :length].long()
            view = self._record(request)
            row = {"units": units, "slots": slots, "view": view}
            self.rows.append(self._plan(request, length) | row)
            full = units[: length // self.shape.unit_size]
            full = full[full >= self.geometry.units_per_page]
            self.pending = torch.unique(torch.cat((self.pending, full[~sealed[full]])))

    def _plan(self, request: int, length: int) -> dict[str, Any]:
        formula, budget, least, sink, window, dense = self.buffers.options[request].tolist()
        ratio, unit = float(self.buffers.ratios[request]), self.shape.unit_size
        if ratio:
            budget = max(least, int(ratio * length))
        units, tail = self.geometry.num_units(length), self.geometry.tail_length(length)
        end = min(max(length - window, 0) // unit, units - 1)
        count = min(units, max((budget - tail) // unit + 1, 1))
        name = FORMULAS[formula] if count < units else "nothing"
        return {
            "formula": name,
            "begin": min(-(-sink // unit), end),
            "end": end,
            "count": count,
            "tail": tail,
            "dense_layers": dense,
        }

    def summarise(self, keys: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> None:
        """See `FusedDecode.summarise`."""
        for name, field in fields.items():
            self.ops.summarise(SUMMARIES[name], keys, field, self.pending)

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
    ) -> torch.Tensor:
        """See `FusedDecode.decode`."""
        self.summarise(keys, fields)  # a unit without a stamp has the fields its keys give
        views = {i: self._view(row, layer, q[i]) for i, row in enumerate(self.rows)}
        widest = max(len(row["units"]) for row in self.rows)
        logical = torch.full((len(self.rows), q.shape[1], widest), -1, dtype=torch.int32)
        physical, counts = torch.zeros_like(logical), []
        for i, row in enumerate(self.rows):
            count = len(row["units"]) if self._dense(row, layer) else row["count"]
            chosen = self._choose(row, layer, q[i : i + 1], keys, fields, scale)
            logical[i, :, :count] = chosen
            physical[i, :, :count] = row["units"][chosen.long()].int()
            counts.append(count)
        lengths = torch.tensor(counts, dtype=torch.int32)
        tails = torch.tensor([row["tail"] for row in self.rows], dtype=torch.int32)
        dense = [self._dense(row, layer) for row in self.rows]
        self.selected(layer, Selection(logical, physical, lengths), dense, views)
        unit = self.shape.unit_size
        out = self.ops.attend(q, keys, values, physical, lengths, tails, scale, unit)[0]
        for i, view in views.items():
            if view is not None:
                ones = torch.ones(1, dtype=torch.int32)
                how = (view.physical, view.counts, ones, scale, 1)
                out[i] = self.ops.attend(q[i : i + 1], keys, values, *how)[0][0]
        return out

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
    ) -> torch.Tensor:
        """Logical units `[H, count]` of one row."""
        total = len(row["units"])
        if self._dense(row, layer):
            return torch.arange(total).expand(q.shape[1], -1)
        table = row["units"][None].int()

        def one(value: int) -> torch.Tensor:
            return torch.tensor([value], dtype=torch.int32)

        candidates = Candidates(table, one(row["begin"]), one(row["end"]))
        how = (candidates, scale, self.shape.reduction)
        if row["formula"] == "position":
            scores = torch.arange(total).float().expand(1, q.shape[1], -1)
        elif row["formula"] == "exact":
            scores = self.ops.score_exact(q, keys, *how, self.shape.unit_size)
        else:
            name = row["formula"]
            scores = self.ops.score(SUMMARIES[name], q, fields[name], *how)
        return self.ops.select(scores, candidates, one(total), one(row["count"])).logical[0]
