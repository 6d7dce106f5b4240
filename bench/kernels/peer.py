"""SGLang's own `torch_native` attention, called as its backend calls it."""

from collections.abc import Callable

import torch

from .layers import DIM, GROUP, HEADS, Layers, PrefillLayer


def torch_native_decode(layers: Layers, scale: float) -> Callable[[int], torch.Tensor]:
    """`TorchNativeAttnBackend._run_sdpa_forward_decode` over the i-th layer."""
    backend = _backend()
    rows = layers.q.shape[0]
    table = torch.arange(rows * layers.context).view(rows, layers.context)
    lengths = torch.full((rows,), layers.context)
    query = layers.q.reshape(rows, HEADS * GROUP, DIM)

    def run(i: int) -> torch.Tensor:
        keys, values = layers.pool(i)
        pool = (keys, values, table, torch.arange(rows), lengths)
        out: torch.Tensor = backend._run_sdpa_forward_decode(
            query, torch.empty_like(query), *pool, scaling=scale, enable_gqa=True, causal=False
        )
        return out

    return run


def torch_native_extend(
    layer: PrefillLayer, first: int, new: int, scale: float
) -> Callable[[int], torch.Tensor]:
    """`TorchNativeAttnBackend._run_sdpa_forward_extend` of the positions [first, first + new)."""
    backend = _backend()
    query = layer.q[first : first + new]
    lengths = (torch.tensor([first + new]), torch.tensor([first]), torch.tensor([new]))

    def run(_: int) -> torch.Tensor:
        pool = (layer.keys, layer.values, layer.slots[None], torch.tensor([0]), *lengths)
        out: torch.Tensor = backend._run_sdpa_forward_extend(
            query, torch.empty_like(query), *pool, scaling=scale, enable_gqa=True, causal=True
        )
        return out

    return run


def _backend() -> "TorchNativeAttnBackend":  # noqa: F821
    """The backend without a model: the attention functions use none of its state."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    return TorchNativeAttnBackend.__new__(TorchNativeAttnBackend)
