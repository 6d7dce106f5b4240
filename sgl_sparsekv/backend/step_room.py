"""Room for the buffers of sparse steps: how many rows they hold, and their part of the memory.

The buffers are allocated after SGLang has given the KV pool what memory is left, so their bytes are
taken from the pool's before it is sized.
"""

import logging
from dataclasses import replace
from typing import Any, cast

import torch

from ..config import FUSED_DEVICES, ServerOptions
from ..errors import UnsupportedSetup
from ..fused_ops import FusedOps
from ..geometry import ceil_div
from ..ops import load_ops
from ..page_metadata import PageMetadata
from ..selection import load_method
from ..selection.view import ViewMethod
from ..summaries import PageSummary
from ..types import HeldShape, RecordShape, StepShape, ViewShape
from .flags import options_of
from .resolution import device_of

logger = logging.getLogger(__name__)
MOST_ROWS = 256
"""Rows of a step that can be sparse, at most."""
MOST_BUFFER_BYTES = 2 << 30
"""Of buffers that grow with the rows of a step."""
MOST_VIEW_BYTES = 1 << 30
"""Of what requests keep, where a served method keeps views."""
MOST_HELD_BYTES = 1 << 30
"""Of what requests hold of their selections, where these serve several steps."""


def step_rows(heads: int, group: int, ranked: int, requests: int, captured: int | None) -> int:
    """Rows of a step that can be sparse.

    Args:
        heads: KV heads of this rank.
        group: query heads per KV head.
        ranked: units of the longest context, of the smallest that a served method selects in.
        requests: that can run at once.
        captured: rows of the largest captured batch; None: batches are not captured.
    """
    per_row = heads * ranked * 4 * (group + 4)
    most = MOST_ROWS if captured is None else min(MOST_ROWS, captured)
    return max(1, min(most, requests, MOST_BUFFER_BYTES // per_row))


def captured_rows() -> int | None:
    """Rows of the largest decode batch that SGLang captures; None where it captures none."""
    from sglang.srt.runtime_context import get_exec

    config = get_exec().graph.cuda_graph_config.decode
    return max(config.bs) if config.bs else None


def reserve_step_buffers(result: None, configurator: Any, kvc: Any) -> None:
    """After `DefaultPoolConfigurator.__init__`: take the steps' buffers out of the pool's bytes."""
    options = options_of(kvc.server_args)
    if options is None or kvc.is_draft_worker or kvc.use_mla_backend:
        return
    options = device_of(options, str(kvc.server_args.device))
    if options.device not in FUSED_DEVICES:
        return
    ops = cast(FusedOps, load_ops(options.device))
    size = ops.step_bytes(expected_shape(kvc, options), bool(options.trace))
    configurator._fixed_overhead_bytes += size
    logger.info("sparsekv: %.1f MiB kept free for step buffers", size / 2**20)


def expected_shape(kvc: Any, options: ServerOptions) -> StepShape:
    """Largest extents that the backend will ask for; the pool itself is not known yet."""
    from sglang.srt.mem_cache.allocation_sizing import get_req_to_token_extra_context_len
    from sglang.srt.runtime_context import get_parallel, get_schedule

    model, parallel = kvc.model_config, get_parallel()
    heads = model.get_num_kv_heads(parallel.attn_tp_size, parallel.attn_dcp_size)
    group = model.get_total_num_attention_heads() // parallel.attn_tp_size // heads
    unit = options.request.unit_size
    layers = kvc.layer_info.num_effective_layers
    units = ceil_div(model.context_len + get_req_to_token_extra_context_len(), unit)
    requests = get_schedule().max_running_requests or MOST_ROWS
    finest = finest_unit(options)
    ranked = units * (unit // finest)
    rows = step_rows(heads, group, ranked, requests, captured_rows())
    shape = StepShape(
        max_rows=rows,
        requests=requests,
        max_units=units,
        max_selected=ranked,
        pool_units=1 << 30,
        heads=heads,
        group=group,
        head_dim=model.head_dim,
        v_head_dim=model.v_head_dim,
        unit_size=unit,
        page_size=unit,
        dtype=kvc.kv_cache_dtype,
        device=torch.device("meta"),
        formulas=frozenset(load_method(name).formula for name in options.methods),
        reduction=options.reduction,
        finest=finest,
        records=records_of(options, None),
        estimates=options.residuals is not None,
        measured=range(layers if options.measures else 0),
        covered=range(layers if options.covers else 0),
        own=brought_planes(options),
    )
    return with_held(with_views(shape, options, layers, 0), options, layers, 0)


def step_shape(backend: Any, layer: Any, captured: int | None) -> StepShape:
    """Extents of a server's steps; `captured` as of `step_rows`."""
    table, geometry = backend.req_to_token_pool.req_to_token, backend.geometry
    layout, first = backend.metadata.layout, backend.token_to_kv_pool.start_layer
    every = range(first, first + layout.num_layers)
    group = layer.tp_q_head_num // layer.tp_k_head_num
    units = ceil_div(table.shape[1], geometry.unit_size)
    finest = finest_unit(backend.options)
    ranked = units * (geometry.unit_size // finest)
    shape = StepShape(
        max_rows=step_rows(layout.num_kv_heads, group, ranked, table.shape[0], captured),
        requests=table.shape[0],
        max_units=units,
        max_selected=ranked,
        pool_units=backend.metadata.num_units,
        heads=layout.num_kv_heads,
        group=group,
        head_dim=layer.qk_head_dim,
        v_head_dim=layer.v_head_dim,
        unit_size=geometry.unit_size,
        page_size=geometry.page_size,
        dtype=layout.dtype,
        device=table.device,
        formulas=frozenset(load_method(name).formula for name in backend.options.methods),
        reduction=backend.options.reduction,
        finest=finest,
        records=records_of(backend.options, backend.metadata),
        estimates=backend.options.residuals is not None,
        measured=every if backend.options.measures else range(0),
        covered=every if backend.options.covers else range(0),
        own=brought_planes(backend.options),
    )
    shape = with_views(shape, backend.options, layout.num_layers, first)
    return with_held(shape, backend.options, layout.num_layers, first)


def records_of(options: ServerOptions, metadata: PageMetadata | None) -> tuple[RecordShape, ...]:
    """Records that steps read; their maps of pages are left out where no metadata is given."""
    named = [load_method(name).segments(options.index) for name in options.methods]
    named.append(options.residuals)
    kinds = dict.fromkeys(summary for summary in named if summary is not None)
    if metadata is None:
        return tuple(RecordShape(summary, 1, 1) for summary in kinds)
    pages = metadata.num_units // metadata.geometry.units_per_page
    held = metadata.records
    return tuple(RecordShape(kind, held[kind.name].capacity, pages) for kind in kinds)


def brought_planes(options: ServerOptions) -> PageSummary | None:
    """Page metadata that a served method brings kernels for.

    Raises:
        UnsupportedSetup: two of them do.
    """
    found = [
        (name, summary)
        for name in options.methods
        for summary in load_method(name).summaries
        if summary.kernels
    ]
    if len({summary for _, summary in found}) > 1:
        raise UnsupportedSetup(
            f"methods {found[0][0]} and {found[1][0]} cannot be served together on a GPU: each "
            "brings kernels for metadata of its own; leave one of them out of --sparsekv-methods"
        )
    return found[0][1] if found else None


def finest_unit(options: ServerOptions) -> int:
    """Tokens of the smallest unit that a served method selects in."""
    whole = options.request.unit_size
    return min(load_method(name).ranked_unit(whole) for name in options.methods)


def with_views(shape: StepShape, options: ServerOptions, layers: int, first: int) -> StepShape:
    """The same with room for views, where a served method keeps any.

    There is room for as many as a step has rows, as a request has them that names no budget and no
    window of its own, or for fewer: within `MOST_VIEW_BYTES`.

    Args:
        shape: of the steps.
        options: of the server.
        layers: of this rank.
        first: number of the first of them.
    """
    methods = [load_method(name) for name in options.methods]
    keeping = [method for method in methods if isinstance(method, ViewMethod)]
    if not keeping:
        return shape
    scores, asked = any(method.accumulates for method in keeping), options.request
    kept = layers * shape.heads * asked.budget_tokens(shape.max_units * shape.unit_size)
    window = max(asked.observation_window, asked.renew_every if scores else 0) + 1
    width = shape.heads * shape.group * shape.head_dim * shape.dtype.itemsize
    one = (8 if scores else 4) * kept + layers * window * width
    views = max(1, min(shape.max_rows, MOST_VIEW_BYTES // one))
    room = ViewShape(shape.max_rows, layers, first, views * kept, views * layers * window, scores)
    return replace(shape, views=room)


def with_held(shape: StepShape, options: ServerOptions, layers: int, first: int) -> StepShape:
    """The same with room for selections that serve several steps, where the server has such.

    A request holds no more than its budget, and has none above the server's: for as many as a step
    has rows, or for fewer, within `MOST_HELD_BYTES`.

    Args:
        shape: of the steps.
        options: of the server.
        layers: of this rank.
        first: number of the first of them.
    """
    if options.request.reselect_every == 1:
        return shape
    budget = options.request.budget_tokens(shape.max_units * shape.unit_size)
    units = min(shape.max_selected, ceil_div(budget, shape.finest or shape.unit_size))
    places = MOST_HELD_BYTES // (layers * shape.heads * units * 8)
    room = HeldShape(max(1, min(shape.max_rows, places)), layers, first, units)
    return replace(shape, held=room)
