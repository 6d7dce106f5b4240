"""A LoRA adapter of random numbers, as PEFT writes one to a folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .soak import SEED

RANK = 4


def save_adapter(model: Path, folder: Path) -> None:
    """For the attention projections of a Llama-like model in `model`."""
    config = json.loads((model / "config.json").read_text())
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = (config[f"num_{kind}_heads"] * size for kind in ("attention", "key_value"))
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    random = torch.Generator().manual_seed(SEED)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for projection, outputs in rows.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden, generator=random)
            weights[f"{name}.lora_B.weight"] = torch.randn(outputs, RANK, generator=random)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / "adapter_model.safetensors"))
    about = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [*rows],
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(about))
