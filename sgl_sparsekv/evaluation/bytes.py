"""Bytes that decode reads, from the shape of a model's keys."""

from collections.abc import Sequence
from typing import Any

import torch

from ..geometry import UNIT_SIZE
from ..page_metadata import KeyLayout, bytes_per_record, bytes_per_unit
from ..selection import METHODS, IndexOptions, load_method
from .model import Model


def bytes_read(model: Model, methods: Sequence[str]) -> dict[str, Any]:
    """What turns the tokens of a cell into bytes.

    `kv_bytes_per_token`: of K and V of one token in one layer, all KV heads; times
    `tokens_attended` it is what attention read. `metadata_share`: by method, bytes that choosing
    reads at most, over the bytes of all K and V in the context.
    """
    layout = key_layout(model)
    return {
        "kv_bytes_per_token": layout.num_kv_heads * kv_bytes(layout),
        "metadata_share": {name: metadata_share(name, layout) for name in methods},
    }


def key_layout(model: Model) -> KeyLayout:
    """One layer's K, as the model's configuration has it."""
    config = model.config
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    dtype = getattr(torch, name.removeprefix("torch."))
    return KeyLayout(1, config.get("num_key_value_heads") or heads, dim, dtype)


def kv_bytes(layout: KeyLayout) -> int:
    """Of K and V of one token, one KV head, one layer."""
    size: int = 2 * layout.head_dim * layout.dtype.itemsize
    return size


def metadata_share(method: str, layout: KeyLayout) -> float:
    """Bytes that choosing reads at most, over the bytes of all K and V in the context."""
    if method not in METHODS:
        return 0.0
    chosen, one = load_method(method), KeyLayout(1, 1, layout.head_dim, layout.dtype)
    stamp = 1
    size = (bytes_per_unit(one, chosen.summaries, UNIT_SIZE) - stamp) / UNIT_SIZE
    segment = chosen.segments(IndexOptions())
    if segment is not None:
        size += bytes_per_record(segment, one) / segment.segment_size
    return size / kv_bytes(one)
