"""A tiny model of families that transformers has no class of: a configuration alone.

Their configuration classes are code that comes with a checkpoint, or SGLang's own. SGLang makes up
the weights (`--load-format dummy`), the same for every server.
"""

import json
from pathlib import Path
from typing import Any

from .sizes import SMALL
from .tiny import write_tokenizer

FLAGS = ("--load-format", "dummy", "--trust-remote-code")
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
    "norm_topk_prob": True,
}
"""What some family or other asks a configuration for; each reads what it knows."""
_EXPERTS = {"moe_top_k": 2, "moe_layer_freq": 1}
_BAILING = {
    "embedding_dropout": 0.0,
    "norm_head": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "partial_rotary_factor": 1.0,
    "rotary_dim": 16,
    "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
BARE: dict[str, dict[str, Any]] = {
    "BailingMoeV2_5ForCausalLM": {"model_type": "bailing_hybrid"},
    "BailingMoeV3ForCausalLM": {"model_type": "bailing_hybrid"},
    "ChatGLMModel": {
        "model_type": "chatglm",
        "kv_channels": 16,
        "multi_query_attention": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "post_layer_norm": True,
        "rmsnorm": True,
    },
    "DeepseekForCausalLM": {"model_type": "deepseek", **_EXPERTS},
    "ExaoneForCausalLM": {"model_type": "exaone", "activation_function": "silu"},
    "GigaChat35ForCausalLM": {"model_type": "gigachat35"},
    "Grok1ForCausalLM": {"model_type": "grok-1"},
    "IQuestLoopCoderForCausalLM": {
        "model_type": "iquestloopcoder",
        "loop_num": 2,
        "loop_window_size": 64,
    },
    "InternLM2ForCausalLM": {"model_type": "internlm2"},
    "JetNemotronForCausalLM": {"model_type": "jet_nemotron"},
    "KimiK3LinearForCausalLM": {"model_type": "kimi_linear"},
    "LLaDA2MoeModelLM": {"model_type": "llada2_moe", **_BAILING},
    "MiniCPMForCausalLM": {
        "model_type": "minicpm",
        "dim_model_base": 32,
        "scale_emb": 2,
        "scale_depth": 1.4,
    },
    "MistralLarge3ForCausalLM": {"model_type": "deepseek_v3"},
    "NanbeigeForCausalLM": {"model_type": "nanbeige"},
    "QWenLMHeadModel": {
        "model_type": "qwen",
        "num_key_value_heads": 4,
        "kv_channels": 16,
        "intermediate_size": 192,
    },
    "SDARForCausalLM": {"model_type": "sdar"},
    "SDARMoeForCausalLM": {"model_type": "sdar_moe"},
    "SarvamMLAForCausalLM": {"model_type": "sarvam_mla"},
    "SolarForCausalLM": {
        "model_type": "solar",
        "bskcn_1": [0],
        "bskcn_2": [],
        "bskcn_3": [2],
        "bskcn_4": [],
        "bskcn_tv": [0.9, 0.8],
    },
    "Spark2_5ForCausalLM": {"model_type": "spark2_5", "sliding_window": 64},
    "TeleFLMForCausalLM": {
        "model_type": "teleflm",
        "input_mult": 1.0,
        "mup_scale_factor": 1.0,
        "output_mult": 1.0,
    },
    "XverseMoeForCausalLM": {"model_type": "xverse", **_EXPERTS},
}
"""By architecture: its model type, and what it has beyond `GENERAL` or otherwise."""
CODE = '''"""A configuration that keeps whatever it is given."""

from transformers import PretrainedConfig


class Configuration(PretrainedConfig):
    model_type = "{model_type}"
'''


def write_bare(architecture: str, folder: Path) -> Path:
    """A folder with a configuration of it, the code of that and a tokenizer."""
    from transformers import CONFIG_MAPPING

    folder.mkdir(exist_ok=True)
    said = {**GENERAL, **BARE[architecture], "architectures": [architecture]}
    if said["model_type"] not in CONFIG_MAPPING:
        said["auto_map"] = {"AutoConfig": "configuration.Configuration"}
        code = CODE.format(model_type=said["model_type"])
        (folder / "configuration.py").write_text(code)
    (folder / "config.json").write_text(json.dumps(said))
    write_tokenizer(folder)
    return folder
