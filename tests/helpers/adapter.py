"""A LoRA adapter of random numbers, as PEFT writes one to a folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .soak import SEED

RANK = 4


def save_adapter(model: Path, folder: Path) -> None:
    """For the query projections of a Llama-like model in `model`."""
    config = json.loads((model / "config.json").read_text())
    hidden, queries = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    random = torch.Generator().manual_seed(SEED)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden, generator=random)
        weights[f"{name}.lora_B.weight"] = torch.randn(queries, RANK, generator=random)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / "adapter_model.safetensors"))
    about = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(about))
