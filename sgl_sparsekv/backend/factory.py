"""Which attention backend a server gets: by the kernels of its device."""

import logging
from typing import Any, cast

from ..config import FUSED_DEVICES
from ..fused_ops import FusedOps
from ..layer_ops import LayerOps
from ..ops import load_ops
from ..serving.room import Room
from .attention import SparseKVBackend
from .cpu_layers import serve_layers
from .flags import options_of
from .fused import FusedBackend
from .grouped import GroupedBackend
from .resolution import device_of

logger = logging.getLogger(__name__)


def create_backend(runner: Any) -> SparseKVBackend:
    """The backend that serves the model of a runner."""
    options = options_of(runner.server_args)
    assert options is not None, "the sparsekv backend is created only when it was chosen"
    options = device_of(options, str(runner.device))
    ops = load_ops(options.device)
    room = Room(runner.model_config.context_len, runner.token_to_kv_pool.size, runner.page_size)
    logger.info("sparsekv: %s", room.told())
    if options.device in FUSED_DEVICES:
        return FusedBackend(runner, options, cast(FusedOps, ops))
    if options.device == "cpu":
        serve_layers(runner.model, cast(LayerOps, ops), room.context)
    return GroupedBackend(runner, options, ops)
