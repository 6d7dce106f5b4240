"""The plan of one decode step: host work, once per step, from lengths and options alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ..config import RequestOptions
from ..geometry import Geometry
from ..selection import SelectionMethod, load_method
from ..selection.policy import BoolArray, IntArray, RowOptions, RowPlan, plan_rows
from ..types import Candidates, Goal, KeptUnits
from .layers import ModelLayers
from .prefix_order import together


@dataclass(frozen=True)
class RowGroup:
    """Rows of a step that read their cache the same way in a layer.

    Attributes:
        method: how units are ranked, or None to read every unit.
        unit_size: tokens per unit, here and in all that follows.
        index: int64 `[rows]`, positions of the rows in the step; on a host rows that begin with
            the same pages are neighbours, so that ops read what they have in common once.
        candidates: what the method may rank.
        num_units: int32 `[rows]`.
        counts: int32 `[rows]`, units kept; with a goal the most that are, of a pool on the mean.
        tails: int32 `[rows]`, tokens in the last unit.
        whole: the group is the whole step, in order.
        records: int32 `[rows, segments]`, records of the rows' whole segments, or None.
        rest: int32 `[rows, segments]`, records that answer for what is not read, or None.
        goal: what decides how much each KV head reads, or None: all that `counts` says.
        kept: what is read in any case, where there is a goal.
    """

    method: SelectionMethod | None
    unit_size: int
    index: torch.Tensor
    candidates: Candidates
    num_units: torch.Tensor
    counts: torch.Tensor
    tails: torch.Tensor
    whole: bool
    records: torch.Tensor | None
    rest: torch.Tensor | None
    goal: Goal | None = None
    kept: KeptUnits | None = None

    @property
    def view(self) -> bool:
        """Whether its rows read what their views list."""
        return self.method is not None and self.method.narrows

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[step rows, ...]` of this group."""
        return rows if self.whole else rows[self.index]


class HostPlan:
    """Who reads how much in one decode step; knows no tensor.

    Args:
        rows: `[n]`, rows of `req_to_token`.
        lengths: `[n]`, tokens of each, the current one included.
        options: one per row.
        geometry: unit size.
        narrowed: which rows have a view; None: no row has.
    """

    def __init__(
        self,
        rows: IntArray,
        lengths: IntArray,
        options: list[RequestOptions],
        geometry: Geometry,
        narrowed: Sequence[bool] | None = None,
    ) -> None:
        self.rows = rows
        self.lengths = lengths
        self.options = options
        self.geometry = geometry
        self.methods = [load_method(o.method) for o in options]
        units = np.array([m.unit_size or geometry.unit_size for m in self.methods], np.int64)
        chosen = RowOptions.resolve(options, lengths)
        self.plan: RowPlan = plan_rows(lengths, chosen, geometry, units)
        self._dense_layers = np.array([o.dense_layers for o in options], np.int64)
        views = np.array([m.narrows for m in self.methods], dtype=bool)
        has_view = np.zeros_like(views) if narrowed is None else np.array(narrowed, dtype=bool)
        self.adaptive = np.array([o.adaptive for o in options], dtype=bool) | views
        self._always_dense = np.where(
            views, ~has_view, self.plan.dense | np.array([m.dense for m in self.methods], bool)
        )

    @property
    def keeps_views(self) -> bool:
        """Whether a row's method keeps views, made or not."""
        return any(method.narrows for method in self.methods)

    @cached_property
    def max_dense_layers(self) -> int:
        """From this layer on the groups stay the same."""
        return int(self._dense_layers.max())

    def dense_rows(self, layer: int) -> BoolArray:
        """Which rows read everything in a layer, by its number."""
        dense: BoolArray = self._always_dense | (self._dense_layers > layer)
        return dense

    def attended(self, layers: ModelLayers) -> tuple[IntArray, IntArray]:
        """Tokens that each row reads, and that dense attention would read, over `layers`.

        What adaptive rows read in layers that select is not known beforehand, and left out.
        """
        there = layers.in_reach(self.lengths)
        selecting = np.where(self._always_dense, 0, layers.selecting(self._dense_layers))
        planned = np.where(self.adaptive, 0, self.plan.attended)
        return there - selecting * (self.lengths - planned), there

    def saved_tokens(self) -> int:
        """Tokens that a sparse layer does not read, over all rows, its page metadata paid for.

        Two vectors per unit weigh as much as the K and V of one token.
        """
        full_units = self.lengths // self.geometry.unit_size
        saved = self.lengths - self.plan.attended - full_units
        return int(np.maximum(saved, 0)[~self._always_dense].sum())


class StepPlan(HostPlan):
    """A plan with the tensors that kernels of any device take, group by group.

    Attributes:
        slots: int32 `[rows, L]`, slot of each position of the longest row.
        records: int32 `[rows, segments]` by method; filled once they are found.
        rest: int32 `[rows, segments]`, records that estimates read; filled likewise.

    Args:
        rows, lengths, options, geometry, narrowed: see `HostPlan`.
        req_to_token: int32 `[max rows, max context]`, slot of each position.
    """

    def __init__(
        self,
        rows: IntArray,
        lengths: IntArray,
        options: list[RequestOptions],
        req_to_token: torch.Tensor,
        geometry: Geometry,
        narrowed: Sequence[bool] | None = None,
    ) -> None:
        super().__init__(rows, lengths, options, geometry, narrowed)
        self._device = req_to_token.device
        span = geometry.num_units(int(lengths.max())) * geometry.unit_size
        index = torch.from_numpy(rows).to(self._device)
        narrow = req_to_token[:, :span]
        if all(method.unit_size is None for method in self.methods):
            narrow = narrow[:, :: geometry.unit_size]
            self.unit_table = geometry.unit_of(narrow.index_select(0, index))
        else:
            self.slots = narrow.index_select(0, index)
            self.unit_table = geometry.unit_table(self.slots)
        self.records: dict[str, torch.Tensor] = {}
        self.rest: torch.Tensor | None = None
        self._groups: dict[bytes, list[RowGroup]] = {}

    def groups(self, layer: int) -> list[RowGroup]:
        """The rows of the step, split by how they read their cache in the layer of a number."""
        dense = self.dense_rows(layer)
        key = dense.tobytes()
        if key not in self._groups:
            self._groups[key] = self._split(dense)
        return self._groups[key]

    @cached_property
    def _order(self) -> IntArray:
        """In which the rows of a group stand."""
        if self._device.type != "cpu":
            return np.arange(len(self.rows))
        return together(self.unit_table.numpy())

    def needed_units(self) -> torch.Tensor:
        """Full physical units that some row's method may score, `[m]`, repeats allowed."""
        plan, whole = self.plan, self.geometry.unit_size
        begins = plan.begin * plan.unit_size // whole
        ends = plan.end * plan.unit_size // whole
        scored = [
            self.unit_table[i, int(begins[i]) : int(ends[i])]
            for i, method in enumerate(self.methods)
            if not self._always_dense[i] and method.summaries
        ]
        if not scored:
            return torch.empty(0, dtype=torch.int64, device=self._device)
        return torch.cat(scored).long()

    def reads(self, method: str) -> BoolArray:
        """Which rows choose by `method` in some layer."""
        chosen = np.array([o.method == method for o in self.options], dtype=bool)
        reading: BoolArray = chosen & ~self._always_dense
        return reading

    @property
    def estimating(self) -> BoolArray:
        """Which rows estimate what they do not read in some layer."""
        asked = np.array([o.estimates for o in self.options], dtype=bool)
        rows: BoolArray = asked & ~self._always_dense
        return rows

    def _split(self, dense: BoolArray) -> list[RowGroup]:
        alike: dict[tuple[str | None, bool, bool], list[int]] = {}
        for i in self._order.tolist():
            option = self.options[i]
            how = (option.method, option.estimates, option.adaptive)
            alike.setdefault((None, False, False) if dense[i] else how, []).append(i)
        groups = []
        for (name, estimates, adaptive), index in alike.items():
            group = self._group(name, estimates, np.array(index))
            groups.append(self._with_goal(group) if adaptive else group)
        return groups

    def _with_goal(self, group: RowGroup) -> RowGroup:
        """The group with what its rows ask for, and what they read in any case."""
        options = [self.options[i] for i in group.index.tolist()]
        coverage = [1.0 if o.coverage is None else o.coverage for o in options]
        pooled = [int(o.budget_split == "heads") for o in options]
        goal = Goal(
            torch.tensor(coverage, device=self._device),
            torch.tensor(pooled, dtype=torch.int32, device=self._device),
        )
        return replace(group, goal=goal, kept=KeptUnits.of(group.candidates, group.num_units))

    def _group(self, name: str | None, estimates: bool, index: IntArray) -> RowGroup:
        whole = np.array_equal(index, np.arange(len(self.rows)))
        where = torch.from_numpy(index).to(self._device)
        method = None if name is None else load_method(name)
        unit_size = (method.unit_size if method else None) or self.geometry.unit_size
        own = RowPlan.everything(self.lengths, unit_size) if method is None else self.plan
        widest = int(own.num_units[index].max())
        table = self.unit_table
        if unit_size != self.geometry.unit_size:
            table = self.geometry.unit_table(self.slots, unit_size)
        table = table if whole else table[where, :widest]
        records = None if name is None else self.records.get(name)
        rest = self.rest if estimates else None

        def tensor(values: IntArray) -> torch.Tensor:
            return torch.from_numpy(values[index].astype(np.int32)).to(self._device)

        return RowGroup(
            method=method,
            unit_size=unit_size,
            index=where,
            candidates=Candidates(table, tensor(own.begin), tensor(own.end)),
            num_units=tensor(own.num_units),
            counts=tensor(own.counts),
            tails=tensor(own.tail),
            whole=whole,
            records=records if records is None or whole else records[where],
            rest=rest if rest is None or whole else rest[where],
        )
