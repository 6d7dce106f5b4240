"""The GPU's attention backend on a CPU: SGLang's memory, plain torch in place of kernels."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sgl_sparsekv.backend import kv_pool
from sgl_sparsekv.backend.request_table import activate
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.types import HeldShape, Selection, StepShape, per_head

from .torch_fused import FORMULAS, TorchFused
from .toy_model import DIM, GROUP, HEADS, LAYERS, SCALE, toy_layers


def fused_backend(memory: Any) -> Any:
    """`FusedBackend` as its constructor leaves it, without a model runner."""
    from sgl_sparsekv.backend.fused import FusedBackend
    from sgl_sparsekv.backend.gate import BreakEven
    from sgl_sparsekv.backend.host_copies import HostCopies, activate_copies
    from sgl_sparsekv.backend.option_table import OptionTable

    backend = FusedBackend.__new__(FusedBackend)
    backend.options, backend.on_cpu = memory.options, True
    backend.ops = load_ops("reference")
    backend.dense = DenseStub(memory)
    backend.req_to_token_pool, backend.token_to_kv_pool = memory.row_pool, memory.pool
    backend.metadata, backend.geometry = memory.metadata, memory.geometry
    backend.layers = toy_layers()
    backend.table = activate(memory.options)
    backend.observer = memory.recorder
    backend._decode_tokens, backend._needs_dense, backend.paged = None, False, None

    def selected(layer: int, *told: Any) -> None:
        report(backend, layer, *told)

    def caches_of() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [memory.pool.get_kv_buffer(layer) for layer in range(LAYERS)]

    backend.step = TorchFused(step_shape(memory), selected, caches_of)
    backend.max_rows = backend.step.shape.max_rows
    backend.option_table = OptionTable(backend.step, memory.options.request)
    backend.held = backend._held(backend.step.shape)
    backend.views = backend._views(backend.step.shape, dict.fromkeys(range(LAYERS), SCALE))
    backend._readers = {}
    backend.records = backend._records(backend.step.shape)
    backend.copies = HostCopies()
    activate_copies(backend.copies)
    backend.table.settle = backend.copies.settle
    backend.telemetry, backend.counts = backend._telemetry(), backend._counts()
    is_due = None if backend.telemetry is None else backend.telemetry.is_due
    backend.gate = BreakEven(backend._host_plan, 0, backend.max_rows, is_due)
    backend.table.orders, backend._order = True, np.arange(backend.max_rows)
    backend._handed_out = []
    backend._sparse, backend._measures, backend._extending = True, False, False
    backend._fields = [
        {s.name: memory.metadata.fields(s.name, layer) for s in memory.metadata.summaries}
        for layer in range(LAYERS)
    ]
    backend._planned = (None, None)
    kv_pool.listen_to_allocator(backend._handed_out.append)
    return backend


def step_shape(memory: Any) -> StepShape:
    """Extents of the toy's steps."""
    from sgl_sparsekv.backend.step_room import brought_planes, records_of, with_views

    table, geometry = memory.row_pool.req_to_token, memory.geometry
    units = geometry.num_units(table.shape[1])
    shape = StepShape(
        max_rows=2 * table.shape[0],
        requests=table.shape[0],
        max_units=units,
        max_selected=units,
        pool_units=memory.metadata.num_units,
        heads=HEADS,
        group=GROUP,
        head_dim=DIM,
        v_head_dim=DIM,
        unit_size=geometry.unit_size,
        page_size=geometry.page_size,
        dtype=memory.dtype,
        device=torch.device("cpu"),
        formulas=frozenset(FORMULAS),
        reduction=memory.options.reduction,
        records=records_of(memory.options, memory.metadata),
        held=HeldShape(table.shape[0], LAYERS, 0, units),
        estimates=memory.options.residuals is not None,
        measured=range(LAYERS if memory.options.measures else 0),
        covered=range(LAYERS if memory.options.covers else 0),
        own=brought_planes(memory.options),
    )
    return with_views(shape, memory.options, LAYERS, 0)


def report(
    backend: Any,
    layer: int,
    place: int,
    selection: Selection,
    dense: bool,
    unit: int,
    records: torch.Tensor | None = None,
    rest: torch.Tensor | None = None,
) -> None:
    """Tell the recorder what a row read, as the grouped backend's observer hears it."""
    selection = replace(selection, counts=per_head(selection.counts, HEADS))
    group = SimpleNamespace(
        index=torch.tensor([place]),
        counts=selection.counts[:, 0],
        unit_size=unit,
        take=lambda rows: rows[place : place + 1],
        records=records,
        rest=rest,
    )
    if dense:
        backend.observer.dense(layer, group)
    else:
        backend.observer.selected(layer, group, selection)


class DenseStub:
    """What stands in for SGLang's dense backend: it writes K and V and reads everything."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def init_forward_metadata(self, batch: Any) -> None:
        """Nothing to plan."""

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor:
        """Prefill whose result nobody judges."""
        if save_kv_cache:
            self.memory.pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
        return torch.zeros_like(q)

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor:
        """Dense decode, and a report that every unit was read."""
        memory = self.memory
        if save_kv_cache:
            memory.pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
        keys, values = memory.pool.get_kv_buffer(layer.layer_id)
        geometry, lengths = memory.geometry, batch.seq_lens
        table = memory.row_pool.req_to_token[batch.req_pool_indices, : int(lengths.max())]
        units = geometry.unit_table(table.long()).int()[:, None].expand(-1, HEADS, -1)
        counts = torch.from_numpy(-(-lengths.numpy() // geometry.unit_size)).int()
        tails = torch.from_numpy((lengths.numpy() - 1) % geometry.unit_size + 1).int()
        grouped = q.view(len(lengths), HEADS, GROUP, DIM)
        out, _ = memory.backend.ops.attend(
            grouped, keys, values, units, counts, tails, layer.scaling, geometry.unit_size
        )
        everything = np.arange(units.shape[2])
        logical = torch.from_numpy(everything).int().expand_as(units)
        for i in range(len(q)):
            chosen = Selection(logical, units, counts).take(torch.tensor([i]))
            report(memory.backend, layer.layer_id, i, chosen, True, geometry.unit_size)
        return out.reshape(len(lengths), -1)
