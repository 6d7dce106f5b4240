"""Tiny random models, written with transformers' own configuration classes."""

import json
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 320
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SEED = 20_406_774


def write_tokenizer(folder: Path, marks: dict[str, str] | None = None) -> Any:
    """A word for every id; `marks` names words by what they stand for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="w0",
        eos_token="w1",
        pad_token="w1",
        unk_token="w2",
        extra_special_tokens=marks or {},
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_llama(folder: Path, **changes: Any) -> Path:
    """A random Llama in float32 with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(**{**SHAPE, **changes})
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Write keys into a model's `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
