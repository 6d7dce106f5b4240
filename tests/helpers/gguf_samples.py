"""Tiny models with random weights, and GGUF files of them as llama.cpp would write them."""

from pathlib import Path
from typing import Any

import gguf
import torch

from sgl_sparsekv.models.text import build_text_tokenizer

HEADS, KV_HEADS, HEAD_DIM, LAYERS, HIDDEN = 4, 2, 16, 2, 64
_TIED = "lm_head.weight"


def tiny_model(architecture: str) -> Any:
    """A model of a family, with the vocabulary of the package's text model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(build_text_tokenizer()),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        # Of Qwen 3 the file does not say it: transformers takes the family's own.
        head_dim=128 if architecture == "qwen3" else HEAD_DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2)
            weight.copy_(weight.bfloat16())  # what a folder in bfloat16 can hold
    return model.eval()


def write_gguf(
    model: Any,
    architecture: str,
    path: Path,
    more: dict[str, torch.Tensor] | None = None,
    without: str = "",
    scaling: str = "",
) -> None:
    """Write a model's file: float32, with the text model's tokenizer.

    Args:
        model: of `tiny_model`.
        architecture: as GGUF names it.
        path: to write.
        more: further tensors, by their names in the file.
        without: a tensor to leave out.
        scaling: of rotary positions.
    """
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(model.model.layers[0].self_attn.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    _add_tokenizer(writer)
    names = gguf.get_tensor_name_map(_architecture(architecture), config.num_hidden_layers)
    tensors = {
        _name(names, name): _permuted(weight, name, architecture)
        for name, weight in model.state_dict().items()
        if name != _TIED
    }
    for name, weight in {**tensors, **(more or {})}.items():
        if name != without:
            writer.add_tensor(name, weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _name(names: gguf.TensorNameMap, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{names.get_name(stem)}.{kind}"


def _permuted(weight: torch.Tensor, name: str, architecture: str) -> torch.Tensor:
    """llama.cpp rotates neighbouring channels of Llama's heads, transformers those half apart."""
    if architecture != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight.contiguous()
    heads = HEADS if "q_proj" in name else KV_HEADS
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    import json

    tokenizer = build_text_tokenizer()
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(inner["vocab"], key=inner["vocab"].get)
    control = {tokenizer.bos_token, tokenizer.eos_token}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if w in control else gguf.TokenType.NORMAL for w in words]
    )
    writer.add_token_merges([" ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
