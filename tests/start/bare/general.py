"""What some family or other asks a configuration for; each reads what it knows."""

from typing import Any

from ..sizes import SMALL

GENERAL: dict[str, Any] = {
    **SMALL,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bias": False,
    "use_cache": True,
    "sliding_window": None,
    "attention_chunk_size": None,
    "norm_topk_prob": True,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SECTIONS = {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}}
"""Rotary angles of time, height and width."""
SIGHT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_channels": 3,
    "depth": 2,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rms_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
"""Of what sees."""


def text(model_type: str, architecture: str = "", **more: Any) -> dict[str, Any]:
    """The language model's part of a configuration."""
    said = {**GENERAL, "model_type": model_type, **more}
    return said | ({"architectures": [architecture]} if architecture else {})


def sight(model_type: str = "", **more: Any) -> dict[str, Any]:
    """The part of a configuration that is about images."""
    return {**SIGHT, **({"model_type": model_type} if model_type else {}), **more}
