"""Watches steps without steering them: statistics, metrics, the checker and the trace."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..config import ServerOptions
from ..errors import StaleMetadata
from ..ops import Ops
from ..page_metadata import (
    Cache,
    Mismatch,
    PageMetadata,
    SegmentRecords,
    StepIndex,
    find_mismatches,
)
from ..serving.metrics import process_metrics
from ..serving.trace import SelectionRecord, TracePublisher, rank_endpoint
from ..types import Selection, TokenLists
from .layers import ModelLayers
from .planner import HostPlan, RowGroup, StepPlan
from .ranks import own_rank
from .request_table import RequestEntry, RequestTable

logger = logging.getLogger(__name__)
Listed = Callable[[RequestEntry, int], torch.Tensor | None]
"""Positions int32 `[H, n]` that a request reads in a context of some length, -1 behind them; None:
it has no view."""
CHECKED_UNITS = 512
"""Units of a batch that one check recomputes, at most."""


class StepObserver:
    """What a step did, told to whoever asked."""

    def __init__(
        self,
        options: ServerOptions,
        ops: Ops,
        metadata: PageMetadata,
        table: RequestTable,
        layers: ModelLayers,
        runner: Any,
    ) -> None:
        self.options = options
        self.ops = ops
        self.metadata = metadata
        self.table = table
        self.layers = layers
        self.rank = own_rank()
        self.metrics = process_metrics(
            prometheus=bool(runner.server_args.enable_metrics) and self.rank.first
        )
        self.metrics.metadata_bytes(metadata.nbytes)
        self.trace: TracePublisher | None = None
        if options.trace:
            endpoint = rank_endpoint(options.trace, self.rank.number)
            self.trace = TracePublisher(endpoint, metrics=self.metrics)
        self.step = 0
        self._plan: HostPlan | None = None
        self._indexed: dict[str, tuple[int, int, int]] = {}
        self._checked: torch.Tensor | None = None

    def log_start(self, device: str, on_cpu: bool) -> None:
        """The start-up banner: one line with everything that decides behaviour."""
        request = self.options.request
        logger.info(
            "sparsekv: method %s, budget %s, sink %d, window %d, first %d layers dense, "
            "reselect every %d; serves %s; page size %d, unit %d; %.1f MiB of page metadata; "
            "kernels %s on %s; check %s",
            request.method,
            request.budget,
            request.sink,
            request.window,
            request.dense_layers,
            request.reselect_every,
            ", ".join(self.options.methods),
            self.metadata.geometry.page_size,
            self.metadata.geometry.unit_size,
            self.metadata.nbytes / 2**20,
            device,
            "cpu" if on_cpu else "cuda",
            self.options.check,
        )

    def prefix_hit(self, slots: torch.Tensor) -> None:
        """A request starts with `slots` `[prefix]` already in the cache."""
        units = self.metadata.geometry.unit_table(slots)
        self.prefix_units(int(self.metadata.sealed[units].sum()) if units.numel() else 0)

    def prefix_units(self, count: int) -> None:
        """A request starts with `count` units whose metadata is there already."""
        self.metrics.shared(count)

    def begin_step(self, plan: HostPlan | None, summarised: int, dense: bool = False) -> None:
        """A step is planned.

        Args:
            plan: of its decode rows; None when no row decodes.
            summarised: units that the step summarises.
            dense: every row reads everything, whatever it asked for.
        """
        self.step += 1
        self._plan = plan
        self.metrics.summarised(summarised)
        self._checked = None
        if plan is None:
            return
        attended, in_context = plan.attended(self.layers)
        if dense:
            attended = in_context
        read = (plan.rows, attended, in_context, plan.lengths)
        for row, *counts in zip(*(values.tolist() for values in read), strict=True):
            self.table.record(row, *counts)
        self.metrics.read(int(attended.sum()), int(in_context.sum()))
        methods = ["full" if dense else option.method for option in plan.options]
        for method in set(methods):
            self.metrics.steps(method, methods.count(method))
        if self.check_is_due and isinstance(plan, StepPlan):
            self._checked = self._sample(plan.unit_table)

    def batch_step(self, dense: bool) -> None:
        """A batch decodes on a GPU, by the dense or by the sparse graph."""
        self.metrics.batch_step(dense)

    def indexed(self, method: str, records: SegmentRecords) -> None:
        """A step has found its segment records; count what that changed."""
        now = (records.built, records.evicted, records.refused)
        before = self._indexed.get(method, (0, 0, 0))
        self._indexed[method] = now
        self.metrics.segments(method, *(a - b for a, b in zip(now, before, strict=True)))

    @property
    def check_is_due(self) -> bool:
        """Whether this step is one of those that are checked."""
        return self.options.check != "off" and self.step % self.options.check_interval == 0

    def check_layer(self, layer: int, keys: torch.Tensor, unit_table: torch.Tensor) -> None:
        """Compare sampled metadata of a layer with its keys; see `end_layer`."""
        self._checked = self._sample(unit_table)
        self.end_layer(layer, keys)
        self._checked = None

    def end_layer(self, layer: int, keys: torch.Tensor) -> None:
        """A layer's K is final for this step: compare sampled metadata with it.

        Raises:
            StaleMetadata: metadata differs and the check mode is `raise`.
        """
        if self._checked is None:
            return
        found = find_mismatches(self.metadata, self.ops, layer, keys, self._checked)
        self.compared(self._checked.numel(), found)

    def compared(self, compared: int, found: list[Mismatch]) -> None:
        """So many fields or records were compared with their keys, and these differ.

        Raises:
            StaleMetadata: one does and the check mode is `raise`.
        """
        self.metrics.checked(compared, len(found))
        if not found:
            return
        message = f"sparsekv: {len(found)} stale fields or records, the first: {found[0]}"
        if self.options.check == "raise":
            raise StaleMetadata(message)
        logger.error(message)

    def check_records(self, index: StepIndex, layer: int, cache: Cache) -> None:
        """Where a check is due, compare one segment record of the step with its keys and values.

        Raises:
            StaleMetadata: it differs and the check mode is `raise`.
        """
        if self._checked is not None:
            compared, found = index.mismatches(layer, cache, self.step)
            self.compared(compared, found)

    def dense(self, layer: int, group: RowGroup) -> None:
        """Rows read everything in a layer."""
        if self.trace is not None:
            for i, count in enumerate(group.counts.tolist()):
                heads = self.metadata.layout.num_kv_heads
                units = everything_of(heads, count)
                self._publish(layer, int(group.index[i]), _name(group), units, group.unit_size)

    def selected(self, layer: int, group: RowGroup, selection: Selection) -> None:
        """Rows read a selection in a layer."""
        if group.goal is not None:
            tokens = (selection.counts - 1) * group.unit_size + group.tails[:, None]
            self._count(group, tokens.sum(1).tolist())
        if self.trace is not None:
            self._trace(layer, group, selection)

    def listed(self, layer: int, group: RowGroup, lists: TokenLists) -> None:
        """Rows read what their views list in a layer."""
        self._count(group, [sum(counts) for counts in lists.counts])
        if self.trace is not None:
            self._trace(layer, group, lists.selection)

    def _trace(self, layer: int, group: RowGroup, selection: Selection) -> None:
        logical = selection.logical.cpu().numpy()
        for place, units in zip(group.index.tolist(), logical, strict=True):
            self._publish(layer, place, _name(group), units, group.unit_size)

    def _count(self, group: RowGroup, totals: list[int]) -> None:
        """A group's rows read so many tokens, all KV heads' in sum, that the plan did not know
        of."""
        assert self._plan is not None
        heads = self.metadata.layout.num_kv_heads
        for place, total in zip(group.index.tolist(), totals, strict=True):
            self.table.entry(int(self._plan.rows[place])).read(total, heads)
        self.metrics.read(sum(totals) / heads, 0)

    def covered(self, method: str, mass: torch.Tensor) -> None:
        """Attention mass `[n, H, G]` of sampled selections of a method is known."""
        known = mass[mass.isfinite()]
        self.metrics.covered(method, float(known.sum()), known.numel())

    def read_beside(self, place: int, tokens: int, heads: int) -> None:
        """The row at `place` of the step reads `tokens`, summed over its KV heads, that the plan
        did not know of."""
        assert self._plan is not None
        self.read(self.table.entry(int(self._plan.rows[place])), tokens, heads)

    def read(self, entry: RequestEntry, tokens: int, heads: int) -> None:
        """A request has read `tokens`, summed over its KV heads, that no plan knew of."""
        entry.read(tokens, heads)
        self.metrics.read(tokens / heads, 0)

    def watched(
        self,
        layer: int,
        logical: torch.Tensor,
        listed: Listed | None = None,
        chosen: torch.Tensor | None = None,
    ) -> None:
        """Rows have read a layer.

        Args:
            layer: its number.
            logical: int32 `[rows, H, n]`, units that rows which select have read, first `chosen` of
                each KV head.
            listed: what rows with views have read in place of that; None: no row has any.
            chosen: int32 `[rows, H]`; None: as many as the plan says.
        """
        if self.trace is None or self._plan is None:
            return
        plan, heads = self._plan, self.metadata.layout.num_kv_heads
        unit_size = self.metadata.geometry.unit_size
        dense, selected = plan.dense_rows(layer), logical[: len(plan.rows)].cpu().numpy()
        counts = np.tile(plan.plan.counts[:, None], heads)
        if chosen is not None:
            counts = chosen[: len(plan.rows)].cpu().numpy()
        for place, option in enumerate(plan.options):
            view = None
            if listed is not None:
                entry = self.table.entry(int(plan.rows[place]))
                view = listed(entry, int(plan.lengths[place]))
            if view is not None:
                self._publish(layer, place, option.method, view.numpy(), 1)
            elif dense[place]:
                units = everything_of(heads, int(-(-plan.lengths[place] // unit_size)))
                self._publish(layer, place, "full", units, unit_size)
            else:
                own = int(plan.plan.unit_size[place])
                self._publish(layer, place, option.method, cut(selected[place], counts[place]), own)

    def _publish(
        self,
        layer: int,
        place: int,
        method: str,
        units: "np.ndarray[Any, Any]",
        unit_size: int,
    ) -> None:
        assert self.trace is not None and self._plan is not None
        self.trace.publish(
            SelectionRecord(
                step=self.step,
                layer=layer,
                rid=self.table.entry(int(self._plan.rows[place])).rid,
                method=method,
                length=int(self._plan.lengths[place]),
                units=units,
                unit_size=unit_size,
                tp_rank=self.rank.tp,
                dp_rank=self.rank.dp,
                pp_rank=self.rank.pp,
            )
        )

    def _sample(self, unit_table: torch.Tensor) -> torch.Tensor:
        """Up to `CHECKED_UNITS` units of the batch, another part of them in every check."""
        units = torch.unique(unit_table.long().flatten())
        units = units[units >= self.metadata.geometry.units_per_page]
        if units.numel() <= CHECKED_UNITS:
            return units
        start = (self.step * CHECKED_UNITS) % units.numel()
        return units.roll(-start)[:CHECKED_UNITS]


def everything_of(heads: int, count: int) -> "np.ndarray[Any, Any]":
    """Logical units `[H, count]` of a row that reads all of them."""
    return np.tile(np.arange(count, dtype=np.int32), (heads, 1))


def cut(units: "np.ndarray[Any, Any]", counts: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The first `counts` `[H]` of units `[H, n]`, -1 behind the shorter ones."""
    most = int(counts.max())
    return np.where(np.arange(most) < counts[:, None], units[:, :most], np.int32(-1))


def _name(group: RowGroup) -> str:
    return group.method.name if group.method else "full"
