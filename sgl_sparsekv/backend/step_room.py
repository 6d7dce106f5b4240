"""Room for the buffers of sparse steps: how many rows they hold, and their part of the memory.

The buffers are allocated after SGLang has given the KV pool what memory is left, so their bytes are
taken from the pool's before it is sized.
"""

import logging
from typing import Any, cast

import torch

from ..config import FUSED_DEVICES, ServerOptions
from ..fused_ops import FusedOps
from ..geometry import ceil_div
from ..ops import load_ops
from ..selection import load_method
from ..types import StepShape
from .flags import options_of
from .resolution import device_of

logger = logging.getLogger(__name__)
MOST_ROWS = 256
"""Rows of a step that can be sparse, at most."""
MOST_BUFFER_BYTES = 2 << 30
"""Of buffers that grow with the rows of a step."""


def step_rows(heads: int, group: int, units: int, requests: int, captured: int | None) -> int:
    """Rows of a step that can be sparse.

    Args:
        heads: KV heads of this rank.
        group: query heads per KV head.
        units: of the longest context.
        requests: that can run at once.
        captured: rows of the largest captured batch; None: batches are not captured.
    """
    per_row = heads * units * 4 * (group + 2)
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
    units = ceil_div(model.context_len + get_req_to_token_extra_context_len(), unit)
    requests = get_schedule().max_running_requests or MOST_ROWS
    rows = step_rows(heads, group, units, requests, captured_rows())
    return StepShape(
        max_rows=rows,
        requests=requests,
        max_units=units,
        max_selected=units,
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
    )
