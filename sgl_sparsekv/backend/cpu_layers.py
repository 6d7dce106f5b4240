"""On a CPU, what is not attention: SGLang's own layers, with the arithmetic of our kernels.

A matrix gets another method, and norms, gates and rotary embeddings another way to be computed:
both are what SGLang has for devices outside its tree. The weights stay the tensors that it loaded
and are read where they lie, so whatever updates, exports or shares them goes on as before. Layers
that we have no kernels for are left as they are: quantized ones, those of other dtypes, and
variants with a formula of their own.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.platforms import current_platform

from ..layer_ops import MOST_ROWS, LayerOps
from ..platform_cpu import SparseKVCpuPlatform

logger = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16)
"""Of layers that are ours: in these torch reads weights far below the speed of memory."""


def is_short(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x `[rows, K]` times weight `[N, K]` is for our kernel."""
    return (
        x.ndim == 2
        and 0 < x.shape[0] <= MOST_ROWS
        and x.dtype is weight.dtype
        and x.stride(1) == weight.stride(1) == 1
    )


class CpuLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """Few rows by our kernel, many by torch's."""

    def __init__(self, ops: LayerOps) -> None:
        super().__init__()
        self._ops = ops

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x `[rows, K]` by the layer's weight `[N, K]` -> `[rows, N]`."""
        weight = layer.weight
        if is_short(x, weight) and (bias is None or bias.dtype is x.dtype):
            return self._ops.linear(x, weight, bias)
        return torch.nn.functional.linear(x, weight, bias)


class CpuHeadMethod(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """An embedding, or the head of a model: both may have one weight."""

    def __init__(self, ops: LayerOps) -> None:
        super().__init__()
        self._ops = ops

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states `[rows, K]` to logits `[rows, vocabulary]`; SGLang adds no bias here."""
        weight = layer.weight
        x = x.to(weight.dtype)
        if is_short(x, weight):
            return self._ops.linear(x, weight, None)
        return torch.matmul(x, weight.T)


def serve_layers(model: torch.nn.Module, ops: LayerOps, positions: int) -> None:
    """Give the layers of a loaded model our kernels, where our CPU platform serves it.

    Args:
        model: as SGLang loaded it.
        ops: kernels of the device.
        positions: of the longest request. Tables of angles that end before are left to SGLang,
            which looks at each position.
    """
    if not isinstance(current_platform, SparseKVCpuPlatform):
        return
    modules = list(model.modules())
    matrices = _serve_matrices(modules, ops)
    for kind, forward in _forwards(modules, ops, positions).items():
        BaseFusedOp.register_oot_forward(kind, forward, current_platform.get_dispatch_key_name())
    logger.info("sparsekv: %d matrices are read by our kernels", matrices)


def _serve_matrices(modules: list[torch.nn.Module], ops: LayerOps) -> int:
    """How many layers have a weight of one of our dtypes and SGLang's plain method, now ours."""
    methods: dict[type, Any] = {UnquantizedLinearMethod: CpuLinearMethod(ops)}
    if not any(isinstance(one, LogitsProcessor) and one.use_fp32_lm_head for one in modules):
        methods[UnquantizedEmbeddingMethod] = CpuHeadMethod(ops)
    found = 0
    for module in modules:
        weight = getattr(module, "weight", None)
        method = methods.get(type(getattr(module, "quant_method", None)))
        if method is not None and weight is not None and weight.dtype in DTYPES:
            module.quant_method = method
            found += 1
    return found


def _forwards(
    modules: list[torch.nn.Module], ops: LayerOps, positions: int
) -> dict[type, Callable[..., Any]]:
    """How each class of layers that is ours is computed."""
    found: dict[type, Callable[..., Any]] = {RMSNorm: _norm(ops), SiluAndMul: _gate(ops)}
    rotary: dict[Any, list[RotaryEmbedding]] = {}
    for module in modules:
        if isinstance(module, RotaryEmbedding):
            rotary.setdefault(type(module), []).append(module)
    for kind, every in rotary.items():
        plain = kind.forward_native is RotaryEmbedding.forward_native
        if plain and all(len(one.cos_sin_cache) >= positions for one in every):
            found[kind] = _rotate(ops)
    return found


def _norm(ops: LayerOps) -> Callable[..., Any]:
    def forward(
        layer: RMSNorm,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
        quant_linear: torch.nn.Module | None = None,
    ) -> Any:
        weight = layer.weight
        ours = (
            x.ndim == 2
            and x.dtype in DTYPES
            and weight.dtype is x.dtype
            and x.shape[1] == layer.hidden_size
            and x.stride(1) == 1
            and post_residual_addition is None
            and layer.variance_size_override is None
            and layer.override_orig_dtype is None
            and not (layer.fp32_residual or layer.cast_x_before_out_mul)
        )
        if ours and residual is None:
            return ops.norm(x, weight, layer.variance_epsilon)
        if ours and residual is not None and residual.dtype is x.dtype:
            return ops.add_norm(x, residual, weight, layer.variance_epsilon)
        return layer.forward_native(x, residual, post_residual_addition)

    return forward


def _gate(ops: LayerOps) -> Callable[..., Any]:
    def forward(layer: SiluAndMul, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2 and x.dtype in DTYPES and x.stride(1) == 1:
            return ops.gate(x)
        out: torch.Tensor = layer.forward_native(x)
        return out

    return forward


def _rotate(ops: LayerOps) -> Callable[..., Any]:
    def forward(
        layer: RotaryEmbedding,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        offsets: torch.Tensor | None = None,
        fused_set_kv_buffer_arg: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        table = layer.cos_sin_cache
        ours = (
            query.ndim == key.ndim == 2
            and query.dtype in DTYPES
            and key.dtype is table.dtype is query.dtype
            and positions.ndim == 1
            and positions.dtype is torch.int64
            and query.stride(1) == key.stride(1) == 1
            and layer.is_neox_style
            and offsets is None
            and fused_set_kv_buffer_arg is None
        )
        if not ours:
            native: tuple[torch.Tensor, torch.Tensor] = layer.forward_native(
                positions, query, key, offsets, fused_set_kv_buffer_arg
            )
            return native
        by_head = (len(query), -1, layer.head_size)
        q, k = ops.rotate(query.view(by_head), key.view(by_head), table, positions)
        return q.view(query.shape), k.view(key.shape)

    return forward
