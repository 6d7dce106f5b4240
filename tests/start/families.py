"""A tiny random model of every family that SGLang knows and transformers can write."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .processors import write_processor
from .tiny import SEED, SHAPE, VOCABULARY, change_config

LAYERS = 4
SMALL: dict[str, Any] = {
    **SHAPE,
    "num_hidden_layers": LAYERS,
    "head_dim": 32,
    "ffn_dim": 96,
    "d_model": 64,
    "n_embd": 64,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "n_head": 4,
    "n_heads": 4,
    "n_inner": 96,
    "n_positions": 2048,
    "n_ctx": 2048,
    "max_seq_len": 2048,
    "ffn_hidden_size": 96,
    "num_key_value_groups": 2,
    "word_embed_proj_dim": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_layers": LAYERS,
    "num_heads": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "kv_channels": 32,
    "multi_query_group_num": 2,
    "padded_vocab_size": VOCABULARY,
    "sliding_window": 64,
    "attention_chunk_size": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "ssm_state_size": 16,
    "n_groups": 1,
    "index_n_heads": 4,
    "index_head_dim": 32,
    "index_topk": 64,
    "depth": 2,
    "encoder_attention_heads": 4,
    "encoder_layers": 2,
    "dtype": "float32",
}
"""Sizes by the names that configuration classes give them; a class takes those it has."""
SPECIAL: dict[str, dict[str, Any]] = {
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "cohere2": {"head_dim": 16},
    "gptj": {"rotary_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "glm5_next": {"num_key_value_heads": 4},
    "glm5_next_text": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "deepseek_v2": {"num_key_value_heads": 4},
}


LIKE = {
    "Contriever": "BertModel",
    "EmbeddingGemmaModel": "Gemma3ForCausalLM",
    "Ernie4_5_ForCausalLM": "Ernie4_5ForCausalLM",
    "ExaoneMoEForCausalLM": "ExaoneMoeForCausalLM",
    "IQuestCoderForCausalLM": "LlamaForCausalLM",
    "InternLM3ForCausalLM": "LlamaForCausalLM",
    "Lfm2BidirectionalModel": "Lfm2ForCausalLM",
    "LlamaEmbeddingModel": "LlamaForCausalLM",
    "LlamaForClassification": "LlamaForCausalLM",
    "LlamaForSequenceClassificationWithNormal_Weights": "LlamaForSequenceClassification",
    "MiMoForCausalLM": "Qwen2ForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "QuantMixtralForCausalLM": "MixtralForCausalLM",
    "Qwen2ForRewardModel": "Qwen2ForCausalLM",
    "Qwen3ForRewardModel": "Qwen3ForCausalLM",
    "TorchNativeLlamaForCausalLM": "LlamaForCausalLM",
    "TorchNativePhi3ForCausalLM": "Phi3ForCausalLM",
    "XverseForCausalLM": "LlamaForCausalLM",
}
"""Architectures that transformers knows by another name, which wrote their checkpoints."""
DRAFTS = (
    "NextN",
    "MTP",
    "Eagle",
    "Eagle3",
    "DSpark",
    "DraftModel",
    "DSparkModel",
    "AssistantModel",
)
"""Ends of names of models that draft for another one, which is refused as a flag."""


@dataclass(frozen=True)
class Family:
    """One architecture of SGLang's registry.

    Attributes:
        architecture: as `config.json` names it.
    """

    architecture: str

    @property
    def model_class(self) -> Any | None:
        """What writes a model of it: a class of transformers, or None."""
        import transformers

        return getattr(transformers, LIKE.get(self.architecture, self.architecture), None)

    @property
    def untried(self) -> str | None:
        """Why no model of it is started; None: one is."""
        if self.architecture.endswith(DRAFTS) or self.architecture.startswith("Eagle3"):
            return "it drafts for another model; --speculative-algorithm is refused"
        if self.architecture.startswith("Transformers"):
            return "no config.json names it; see --model-impl transformers"
        return None if self.model_class else "transformers has no such class"


def families() -> list[Family]:
    """Every architecture that SGLang serves, in order."""
    from sglang.srt.models.registry import ModelRegistry

    return [Family(name) for name in sorted(ModelRegistry.get_supported_archs())]


def write_family(family: Family, folder: Path) -> Path:
    """A random model in float32 of it, with a tokenizer.

    Raises:
        Exception: transformers cannot build a small one.
    """
    kind = family.model_class
    assert kind is not None
    model_type = kind.config_class.model_type
    config = small_config(kind.config_class, model_type)
    torch.manual_seed(SEED)
    model = kind(config).to(torch.float32)
    for name, value in model.named_parameters():
        # Wide enough that attention decides what comes next, and no two logits tie.
        if value.dim() > 1 and "norm" not in name:
            torch.nn.init.normal_(value, std=0.08)
    model.save_pretrained(folder)
    change_config(folder, architectures=[family.architecture])
    write_processor(model_type, folder)
    return folder


def small_config(kind: Any, model_type: str) -> Any:
    """A configuration of this class with our sizes, those of its parts included."""
    defaults = kind()
    sizes = dict(_sizes(defaults, kind)) | SPECIAL.get(model_type, {})
    parts = {
        name: small_config(type(part), part.model_type).to_dict()
        for name in getattr(kind, "sub_configs", {})
        if (part := getattr(defaults, name, None)) is not None
    }
    config = kind(**sizes, **parts)
    if set(getattr(config, "layer_types", None) or ()) == {"sliding_attention"}:
        # Too few layers for the pattern: without one that sees all, nothing could be sparse.
        config.layer_types = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    return config


def _sizes(defaults: Any, kind: Any) -> Iterator[tuple[str, Any]]:
    said = defaults.to_dict()
    known = {*inspect.signature(kind.__init__).parameters, *said, *dir(kind)}
    for name, value in SMALL.items():
        default = said[name] if name in said else _attribute(defaults, name)
        if name in known and default is not None and not isinstance(default, list):
            yield name, value
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name in known:
            yield name, SMALL[name]


def _attribute(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # some say that a value varies by layer
        return None
