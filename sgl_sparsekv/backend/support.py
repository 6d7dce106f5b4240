"""What a loaded model needs that our backend does not have: refused, or served dense."""

import logging
from typing import Any

from ..errors import UnsupportedOnDevice
from ..ops import Ops
from ..selection import load_method
from .model_refusals import unserved

logger = logging.getLogger(__name__)


def check_runner(runner: Any, methods: tuple[str, ...], ops: Ops) -> None:
    """Refuse what would give wrong answers, in one sentence each.

    Raises:
        UnsupportedSetup: says what, why and what to do.
        UnsupportedOnDevice: a method needs an op that the device lacks.
    """
    if not hasattr(runner.token_to_kv_pool, "page_metadata"):
        raise unserved(
            f"the KV pool {type(runner.token_to_kv_pool).__name__} of this model",
            "it keeps several kinds of cache (sliding-window or linear layers)",
        )
    for name in methods:
        method = load_method(name)
        op = method.missing_op(ops)
        if hasattr(ops, "fused"):
            op = op if method.formula else "fused decode"
        elif method.narrows and runner.device != "cpu":
            op = "views on a GPU"
        if op:
            raise UnsupportedOnDevice(name, op, ops.name)
    for module in attention_layers(runner.model):
        reason = dense_reason(module)
        if module.logit_cap and runner.device == "cpu":
            raise unserved("models with logit caps", "no CPU kernel applies them", "use a GPU")
        if reason:
            logger.warning(
                "sparsekv: layer %d is served dense by SGLang: %s", module.layer_id, reason
            )


def dense_reason(layer: Any) -> str | None:
    """Why SGLang's own dense backend must serve a layer, or None when ours can."""
    if layer.sliding_window_size > -1:
        return "it has a sliding window of its own"
    if layer.is_cross_attention:
        return "it attends to an encoder"
    if str(getattr(layer.attn_type, "value", layer.attn_type)) != "decoder":
        return "it is not causal"
    if layer.logit_cap:
        return "it caps its logits"
    if layer.xai_temperature_len > 0:
        return "it scales queries by position"
    return None


def attention_layers(model: Any) -> list[Any]:
    """SGLang's attention modules of a model, in order."""
    from sglang.srt.layers.radix_attention import RadixAttention

    found = [module for module in model.modules() if isinstance(module, RadixAttention)]
    # Models that run transformers' own code hold them beside the tree of modules.
    return found or [*getattr(model, "attention_instances", {}).values()]
