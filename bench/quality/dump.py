"""Rotated queries, keys and values of a transformers model, taken where it calls attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

RECORDER = "sparsekv_recorder"
"""Name of our attention function among transformers' own."""


@dataclass(frozen=True)
class LayerDump:
    """One layer over one sequence of L tokens, at n decode positions.

    Attributes:
        layer: counted from the model's first.
        q: bfloat16 `[n, H, G, D]`, rotated.
        keys: bfloat16 `[L, H, D]`, rotated: what a server's pool would hold.
        values: bfloat16 `[L, H, Dv]`.
        plain_keys: bfloat16 `[L, H, D]`, before the rotation.
        scale: softmax scale.
    """

    layer: int
    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    plain_keys: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Dump:
    """What a model attended with.

    Attributes:
        positions: int64 `[n]`, ascending; a query sees the keys up to its own position.
        layers: every layer.
        accuracy: share of the positions whose next token the dense model foretells.
        cos: float32 `[L, R]` of the rotation of the first R channels.
        sin: as `cos`.
    """

    positions: torch.Tensor
    layers: tuple[LayerDump, ...]
    accuracy: float
    cos: torch.Tensor
    sin: torch.Tensor


def dump(model: Any, ids: Sequence[int], positions: Sequence[int]) -> Dump:
    """Read a text once and record every layer's attention at some positions.

    Args:
        model: a causal language model of transformers; its attention function is replaced.
        ids: L tokens.
        positions: where a decode step is looked at, below L - 1.

    Raises:
        ValueError: a layer's attention is not plain causal softmax attention.
    """
    from transformers import AttentionInterface

    asked = torch.tensor(sorted(positions))
    recorder = _Recorder(asked)
    AttentionInterface.register(RECORDER, recorder.attend)
    model.eval().set_attn_implementation(RECORDER)
    hooks = [
        module.register_forward_hook(recorder.rotation)
        for name, module in model.named_modules()
        if name.endswith("rotary_emb")
    ]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False, logits_to_keep=asked).logits[0]
    for hook in hooks:
        hook.remove()
    right = logits.argmax(-1) == torch.tensor(ids)[asked + 1]
    accuracy = right.float().mean().item()
    return Dump(asked, tuple(recorder.layers), accuracy, recorder.cos, recorder.sin)


class _Recorder:
    """The attention function, and what it saw."""

    def __init__(self, positions: torch.Tensor) -> None:
        self.positions = positions
        self.layers: list[LayerDump] = []
        self.cos = self.sin = torch.empty(0)

    def rotation(self, module: Any, args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Forward hook of the rotary embedding: remembers cos and sin `[1, L, R]`."""
        self.cos, self.sin = output[0][0].float(), output[1][0].float()

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """q `[1, H * G, L, D]`, k and v `[1, H, L, D]` -> causal attention `[1, L, H * G, Dv]`."""
        _check_plain(module, key.shape[2], options)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        heads, k = key.shape[1], key[0].movedim(0, 1)  # [L, H, D]
        self.layers.append(
            LayerDump(
                len(self.layers),
                query[0, :, self.positions].movedim(0, 1).unflatten(1, (heads, -1)).bfloat16(),
                k.bfloat16().contiguous(),
                value[0].movedim(0, 1).bfloat16().contiguous(),
                turned(k.float(), self.cos, -self.sin).bfloat16(),
                scale,
            )
        )
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None


def turned(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of keys `[L, H, D]` by `cos`, `sin` `[L, R]`; back again with -sin."""
    width = cos.shape[-1]
    first, rest = keys.split((width, keys.shape[-1] - width), -1)
    a, b = first.chunk(2, -1)
    first = first * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]
    return torch.cat((first, rest), -1)


def _check_plain(module: Any, length: int, options: dict[str, Any]) -> None:
    layer = getattr(module, "layer_idx", "?")
    window = options.get("sliding_window")
    if window is not None and window < length:
        raise ValueError(f"layer {layer} must see the whole context, got a window of {window}")
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(f"layer {layer} must have plain softmax attention, got {name}")
