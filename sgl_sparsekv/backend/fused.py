"""Decode planned on the device: static buffers, CUDA graphs, no number from the host in a step.

out of the graph   options of new requests, pages handed out, host plans of stock kernels
in the graph       stamps of pages that start anew, the plan of every row, its units
in each layer      K and V written, three launches
behind the last    stamps of what was summarised
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..config import ServerOptions
from ..errors import UnsupportedSetup
from ..fused_ops import FusedOps
from ..page_metadata import SegmentRecords
from ..selection import load_method
from ..selection.policy import BoolArray, IntArray
from ..types import StepShape
from .attention import SparseKVBackend, host_lengths
from .device_counts import DeviceCounts
from .device_records import DeviceRecords
from .device_telemetry import DeviceTelemetry
from .gate import DENSE, MEASURED, SPARSE, BreakEven, Cost, activate_gate, predicted_cost
from .host_copies import HostCopies, activate_copies
from .kv_pool import listen_to_allocator
from .option_table import OptionTable
from .paged import PagedRoute
from .planner import HostPlan
from .prefix_order import order_of
from .request_table import RequestEntry
from .step_room import captured_rows, step_shape
from .support import attention_layers
from .views.device_views import DeviceViews
from .views.making import ViewMaker
from .views.store import ViewStore

logger = logging.getLogger(__name__)
Written = tuple[int, RequestEntry, int]
"""Row of `req_to_token`, the request that owns it, and tokens that are written."""


class FusedBackend(SparseKVBackend):
    """Every step runs the same launches over the same buffers, whatever its requests ask for."""

    def __init__(self, runner: Any, options: ServerOptions, ops: FusedOps) -> None:
        super().__init__(runner, options, ops)
        modules = attention_layers(runner.model)
        served = [module for module in modules if self.layers.is_ours(module.layer_id)]
        self._needs_dense = len(served) < len(modules)
        shape = step_shape(self, served[0], captured_rows())
        self.step = ops.fused(shape, watched=bool(options.trace))
        self.max_rows = shape.max_rows
        self.option_table = OptionTable(self.step, options.request)
        self.views = self._views(shape, {module.layer_id: module.scaling for module in served})
        self._readers: dict[str, SegmentRecords] = {}
        self.records = self._records(shape)
        self.paged = self._route(shape)
        per_token = shape.heads * (shape.head_dim + shape.v_head_dim) * shape.dtype.itemsize
        cost = predicted_cost(shape.heads, per_token, torch.device(shape.device))
        needed = cost if isinstance(options.dense_below, str) else options.dense_below
        self.copies = HostCopies()
        activate_copies(self.copies)
        self.table.settle = self.copies.settle
        self.telemetry, self.counts = self._telemetry(), self._counts()
        is_due = None if self.telemetry is None else self.telemetry.is_due
        self.gate = BreakEven(self._host_plan, needed, self.max_rows, is_due)
        activate_gate(self.gate)
        self.table.orders = True
        self._order = np.arange(self.max_rows)
        self._handed_out: list[torch.Tensor] = []
        listen_to_allocator(self._handed_out.append)
        self._sparse = True
        self._measures = False
        self._extending = False
        self._fields: list[dict[str, torch.Tensor]] = [
            {s.name: self.metadata.fields(s.name, layer) for s in self.metadata.summaries}
            for layer in range(self.metadata.layout.num_layers)
        ]
        self._planned: tuple[Any, HostPlan | None] = (None, None)
        logger.info("sparsekv: %s", self._told(shape, needed))

    def _telemetry(self) -> DeviceTelemetry | None:
        """What samples steps; None: the server was not started so."""
        if not self.step.shape.measured:
            return None
        how = (self.table, self.layers, self.copies)
        return DeviceTelemetry(self.step, *how, self.observer.covered)

    def _counts(self) -> DeviceCounts | None:
        """What counts rows that ask for a coverage; None: none may."""
        if not self.step.shape.covered:
            return None
        how = (self.table, self.layers, self.copies)
        return DeviceCounts(self.step, *how, self.observer.read)

    def _views(self, shape: StepShape, scales: dict[int, float]) -> DeviceViews | None:
        """Where requests may keep views; None: no method that is served does."""
        if shape.views is None:
            return None
        store = ViewStore(self.step.buffers.views, shape.views, shape.heads)
        table, watched = self.req_to_token_pool.req_to_token, bool(self.options.trace)
        pool = self.token_to_kv_pool
        views = DeviceViews(ViewMaker(store, self.layers, scales, pool, table, watched))
        self.table.view_of = views.view_of
        return views

    def _records(self, shape: StepShape) -> DeviceRecords | None:
        """Segment records of served methods; None: no method reads any."""
        if not shape.records:
            return None
        table = self.req_to_token_pool.req_to_token
        found = DeviceRecords(self.step, self.metadata, self.token_to_kv_pool, table)
        for method in reversed(self.options.methods):
            summary = load_method(method).segments(self.options.index)
            if summary is not None:
                self._readers[method] = found.kinds[summary.name]
        return found

    def _told(self, shape: StepShape, needed: int | Cost) -> str:
        """What a server says of its steps when it starts."""
        views = ""
        if shape.views is not None:
            views = f", views of {shape.views.kept} tokens over layers and KV heads among them"
        said = (
            f"{self.step.nbytes / 2**20:.1f} MiB of step buffers{views}; units of "
            f"{shape.unit_size} tokens; attend: {self.options.attend}; batches of up to "
            f"{self.max_rows} requests are sparse"
        )
        if isinstance(needed, int):
            return f"{said} where that saves {needed} tokens a layer or more"
        return f"{said}, by prediction, {self.sparse_from(needed)}"

    def sparse_from(self, cost: Cost) -> str:
        """From which length on requests with the server's options are worth choosing for."""
        shape = self.step.shape
        context = shape.max_units * shape.unit_size
        budget = self.options.request.budget_tokens(context)
        alone, eight = (
            cost.break_even(rows, budget, shape.unit_size, context) or f"more than {context}"
            for rows in (1, 8)
        )
        return f"from {alone} tokens on alone and {eight} in batches of 8"

    def _route(self, shape: StepShape) -> PagedRoute | None:
        if self.options.attend == "triton":
            return None
        if self.on_cpu:
            raise UnsupportedSetup(
                f"--sparsekv-attend {self.options.attend} needs an NVIDIA GPU; use triton"
            )
        capability = torch.cuda.get_device_capability()
        return PagedRoute(self.options.attend, shape, self.options.request.dense_layers, capability)

    # -- graph phases ----------------------------------------------------------------------

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """State of the dense graphs; ours exists since the constructor."""
        self.dense.init_cuda_graph_state(max_bs, max_num_tokens)
        self.gate.max_rows = min(self.max_rows, max_bs)
        if max_bs < self.max_rows:
            logger.warning(
                "sparsekv: batches of more than %d requests run dense and without CUDA graphs; "
                "raise --cuda-graph-max-bs-decode to have them captured",
                max_bs,
            )

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Host work before a graph is captured or replayed."""
        self._extending = False
        self._take(self._variant(forward_batch, in_capture))
        plan = None if in_capture else self._host_plan(forward_batch)
        if not self._sparse or self._needs_dense:
            self.dense.init_forward_metadata_out_graph(forward_batch, in_capture)
        if self._sparse and self.paged is not None:
            self.paged.plan(forward_batch.batch_size, plan, graph=True)
        self._begin_decode(plan)
        self.table.launched = None

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Recorded work at the head of a decode step."""
        self.step.forget(self.metadata.sealed, forward_batch.out_cache_loc)
        if not self._sparse or self._needs_dense:
            self.dense.init_forward_metadata_in_graph(forward_batch)
        if self._sparse:
            self._begin(forward_batch.req_pool_indices, forward_batch.seq_lens)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """A step without a graph."""
        self._decode_tokens = None
        mode = forward_batch.forward_mode
        if mode.is_idle():
            self.dense.init_forward_metadata(forward_batch)
            return
        if mode.is_decode():
            self.gate.select(forward_batch)
            self._take(self._variant(forward_batch, False))
            plan = self._host_plan(forward_batch)
            if not self._sparse or self._needs_dense:
                self.dense.init_forward_metadata(forward_batch)
            if self._sparse and self.paged is not None:
                self.paged.plan(forward_batch.batch_size, plan, graph=False)
            self._begin_decode(plan)
            self.step.forget(self.metadata.sealed, forward_batch.out_cache_loc)
            if self._sparse:
                self._begin(forward_batch.req_pool_indices, forward_batch.seq_lens)
            self.table.launched = None
        else:
            self._begin_extend(forward_batch)
        self._extending = not mode.is_decode()

    def _take(self, variant: str) -> None:
        """What this step, or the graph being captured, does from here on."""
        self._sparse, self._measures = variant != DENSE, variant == MEASURED

    def _variant(self, forward_batch: Any, in_capture: bool) -> str:
        """What this step, or the graph being captured, is to do."""
        if forward_batch.batch_size > self.max_rows:
            return DENSE
        if not in_capture:
            return self.gate.chosen
        from sglang.srt.model_executor.runner_utils.capture_mode import (
            get_capture_attention_variant,
        )

        return get_capture_attention_variant() or SPARSE

    def _before_step(
        self, plan: HostPlan | None, filled: int = 0, prefilled: Sequence[Written] = ()
    ) -> None:
        """Pages that the allocator gave to writers we do not see, and who owns which row.

        `filled` units are those that prefill fills; of decode rows they are counted here.
        `prefilled` are rows that a prefill goes on with.
        """
        for slots in self._handed_out:
            if slots.is_cuda:  # allocated on the scheduler's stream, read on this one
                slots.record_stream(torch.cuda.current_stream())
            self.step.forget(self.metadata.sealed, slots)
        self._handed_out.clear()
        if self.records is not None:
            self._build_records(plan, prefilled)
        self.copies.begin_step()
        if plan is None:
            self.observer.begin_step(None, filled)
            return
        if self.telemetry is not None and self.telemetry.begin_step(plan, self._sparse):
            self._measures = True
        if self.counts is not None and self._sparse:
            self.counts.begin_step(plan)
        for row in plan.rows[plan.rows >= 0].tolist():  # below: given back before this late step
            entry = self.table.entry(row)
            self.option_table.bind(row, entry.options)
            if self.views is not None:
                self.views.bind(row, entry)
        if self._sparse:
            filled += int((plan.lengths % self.geometry.unit_size == 0).sum())
        self.observer.begin_step(plan, filled, dense=not self._sparse)
        if self.views is not None and self._sparse:
            entries = [self.table.entry(row) for row in plan.rows.tolist()]
            self.views.decode(entries, plan.lengths, self.observer)
        if self.observer.check_is_due:
            self._check(plan)

    def _build_records(self, plan: HostPlan | None, prefilled: Sequence[Written]) -> None:
        """Records of segments that earlier steps made whole."""
        assert self.records is not None
        rows = list(prefilled)
        if plan is not None:
            lengths = plan.lengths.tolist()
            owned = [
                (row, n) for row, n in zip(plan.rows.tolist(), lengths, strict=True) if row >= 0
            ]
            rows += [(row, self.table.entry(row), length - 1) for row, length in owned]
        self.records.build(rows)
        for method, records in self._readers.items():
            self.observer.indexed(method, records)

    def _begin_decode(self, plan: HostPlan | None) -> None:
        """Host work of a decode step, once it is known whether it is sparse."""
        self._before_step(plan)
        self._arrange(plan)
        if plan is not None:
            self.observer.batch_step(dense=not self._sparse)

    def _arrange(self, plan: HostPlan | None) -> None:
        """Put rows of a sparse step that begin alike side by side; None: all in their places."""
        order = np.arange(self.max_rows)
        if plan is not None and self._sparse:
            rows = plan.rows.tolist()
            order[: len(rows)] = order_of([self.table.entry(row).prefix for row in rows])
        if (order != self._order).any():
            self._order = order
            found = torch.from_numpy(order.astype(np.int32))
            on_gpu = self.req_to_token_pool.req_to_token.is_cuda
            self.step.arrange(found.pin_memory() if on_gpu else found)

    def _check(self, plan: HostPlan) -> None:
        """Compare stamped units of the batch with their keys; waits for the device."""
        table = self.req_to_token_pool.req_to_token
        rows = torch.from_numpy(plan.rows).to(table.device)
        before = int(plan.lengths.max()) - 1  # the newest token has no K yet
        units = self.geometry.unit_table(table[rows, :before])
        for layer in range(self.metadata.last_layer + 1):
            keys = self.token_to_kv_pool.get_key_buffer(layer + self.token_to_kv_pool.start_layer)
            self.observer.check_layer(layer, keys, units)
        if self.records is not None:
            number = self.observer.step
            for row, length in zip(plan.rows.tolist(), plan.lengths.tolist(), strict=True):
                self.observer.compared(*self.records.mismatches(self.ops, row, length - 1, number))

    def _begin(self, request_rows: torch.Tensor, lengths: torch.Tensor) -> None:
        self.step.begin(
            self.metadata.sealed, request_rows, lengths, self.req_to_token_pool.req_to_token
        )

    def _begin_extend(self, forward_batch: Any) -> None:
        """Prefill: list the units that fill; decode rows of a mixed batch are planned as well."""
        self.dense.init_forward_metadata(forward_batch)
        self._take(SPARSE)
        if self.views is not None:
            self.views.begin_step()
        launched, self.table.launched = self.table.launched, None
        decode, filled, prefilled = np.zeros(0, dtype=bool), 0, list[Written]()
        if launched is not None:
            decode = self.table.is_decode(launched)
            filled, prefilled = self._note_extends(forward_batch, launched, decode)
        mixed = 0 < decode.sum() <= self.max_rows
        host = host_lengths(forward_batch)[: len(decode)] if mixed else None
        plan = None
        if launched is not None and host is not None:
            plan = self._host_plan_of(launched[decode], host[decode])
        self._before_step(plan, filled, prefilled)
        self._arrange(None)
        self.step.forget(self.metadata.sealed, forward_batch.out_cache_loc)
        rows, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        for first in range(0, rows.numel(), self.max_rows):
            some = slice(first, first + self.max_rows)
            self._begin(rows[some], lengths[some])
        if plan is not None:
            self._begin_mixed(forward_batch, plan, decode)

    def _begin_mixed(self, forward_batch: Any, plan: HostPlan, decode: BoolArray) -> None:
        """Plan the decode rows of a batch that prefills others."""
        rows, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        ends = np.cumsum(forward_batch.extend_seq_lens_cpu)[: len(decode)]
        place = torch.from_numpy(np.flatnonzero(decode)).to(rows.device)
        self._decode_tokens = torch.from_numpy(ends[decode] - 1).to(rows.device)
        if self.paged is not None:
            self.paged.plan(len(plan.rows), plan, graph=False)
        self._begin(rows[place], lengths[place])

    def _note_extends(
        self, forward_batch: Any, launched: IntArray, decode: BoolArray
    ) -> tuple[int, list[Written]]:
        """Note prefix hits of requests that begin, and which queries views take; gives the units
        that prefill fills, and what rows had before."""
        unit, filled, written = self.geometry.unit_size, 0, list[Written]()
        lengths, new = host_lengths(forward_batch).tolist(), forward_batch.extend_seq_lens_cpu
        ends = np.cumsum(new).tolist()
        for i in np.flatnonzero(~decode).tolist():
            row, length, added = int(launched[i]), lengths[i], new[i]
            entry = self.table.entry(row)
            if self.views is not None:
                self.views.extend(entry, slice(ends[i] - added, ends[i]), length)
            filled += length // unit - (length - added) // unit
            written.append((row, entry, length - added))
            if not entry.extended:
                entry.extended = True
                self.observer.prefix_units((length - added) // unit)
        return filled, written

    # -- host mirror -----------------------------------------------------------------------

    def _host_plan(self, forward_batch: Any) -> HostPlan | None:
        """Plan of the batch that SGLang launched last; None for dummy batches and idle ranks."""
        launched = self.table.launched
        if launched is None or not len(launched) or forward_batch.seq_lens_cpu is None:
            return None
        if len(launched) > forward_batch.batch_size:
            return None
        if self._planned[0] is not launched:
            lengths = host_lengths(forward_batch)[: len(launched)]
            self._planned = (launched, self._host_plan_of(launched, lengths))
        return self._planned[1]

    def _host_plan_of(self, rows: Any, lengths: Any) -> HostPlan:
        entries = [self.table.entry(row) for row in rows.tolist()]
        options = [entry.options for entry in entries]
        narrowed = None if self.views is None else self.views.narrowed(rows, entries, lengths)
        return HostPlan(rows, lengths, options, self.geometry, narrowed)

    # -- once per layer --------------------------------------------------------------------

    def _is_sparse_step(self) -> bool:
        return self._sparse

    def _left_to_sglang(self, layer: Any) -> None:
        """From the next step on SGLang's backend is prepared in sparse steps too.

        Raises:
            UnsupportedSetup: this step is sparse, so it would read what another step prepared.
        """
        if self._sparse and not self._extending and not self._needs_dense:
            raise UnsupportedSetup(
                f"layer {layer.layer_id} of this model calls attention with keywords that the "
                "sparsekv backend does not serve; use another backend"
            )
        self._needs_dense = True

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Prefill by SGLang, then this layer's page metadata, then decode rows of a mixed batch."""
        out: torch.Tensor = super().forward_extend(
            q, k, v, layer, forward_batch, save_kv_cache, **kwargs
        )
        self._end_layer(layer)
        return out

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Sparse decode of every row, or SGLang's dense one below the break-even."""
        out: torch.Tensor = super().forward_decode(
            q, k, v, layer, forward_batch, save_kv_cache, **kwargs
        )
        if self._sparse:
            self._end_layer(layer)
        return out

    def _listed(self, layer: int) -> Callable[[RequestEntry, int], torch.Tensor | None] | None:
        """What rows with views read in a layer; None: no row has any."""
        return None if self.views is None else partial(self.views.listed, layer)

    def _extended(self, q: torch.Tensor, layer: Any) -> None:
        if self.views is not None and self.views.extends:
            self.views.extended(layer.layer_id, q.reshape(len(q), -1))

    def _summarise(self, layer: Any) -> None:
        """Units that fill in prefill, or in a layer that SGLang serves.

        A sparse decode summarises in its own first launch; a dense step leaves units without a
        stamp, and the next sparse one finds them.
        """
        if self._extending or (self._sparse and not self.layers.is_ours(layer.layer_id)):
            keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
            self.step.summarise(keys, self._fields[self._local(layer)])

    def _end_layer(self, layer: Any) -> None:
        if layer.layer_id == self.layers.last:
            self.step.end(self.metadata.sealed)

    def _decode(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        number, local, heads = layer.layer_id, self._local(layer), layer.tp_k_head_num
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        grouped = q.to(keys.dtype).reshape(q.shape[0], heads, -1, layer.qk_head_dim)
        paged = None if self.paged is None else self.paged.of_layer(number)
        out = self.step.decode(
            self.metadata.sealed, number, grouped, keys, values, self._fields[local],
            layer.scaling, paged, {} if self.records is None else self.records.of_layer(local),
        )  # fmt: skip
        if self._measures:
            self.step.measure(number, grouped, keys, layer.scaling)
        if self.options.trace:
            held, cover = self.step.buffers, self.step.buffers.cover
            chosen = None if cover is None else cover.chosen
            self.observer.watched(number, held.logical, self._listed(number), chosen)
        return out.reshape(q.shape[0], layer.tp_q_head_num, layer.v_head_dim).to(q.dtype)
