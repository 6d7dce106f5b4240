"""Shipped weights: one safetensors file in bfloat16, with its recipe in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TIED = "lm_head.weight"


def save_weights(model: PreTrainedModel, about: dict[str, Any], path: Path) -> None:
    """Writes the weights of `model` with `about` as their recipe; tied ones once."""
    from safetensors.torch import save_file

    state = {name: w.detach().to(torch.bfloat16) for name, w in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state[_TIED]
    save_file(state, path, metadata={"format": "pt", "recipe": json.dumps(about)})


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Reads weights that `save_weights` wrote into `model`, in its own type."""
    from safetensors.torch import load_file

    state = load_file(path)
    if model.config.tie_word_embeddings:
        state[_TIED] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in the header of weights."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["recipe"]))
