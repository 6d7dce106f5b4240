"""Models that cannot be served, known from their configuration: refused before weights load."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnsupportedSetup

ANOTHER = "use another backend"
CLOSED = "SGLang serves it with backends of a closed list"


def unserved(what: str, why: str, remedy: str = ANOTHER) -> UnsupportedSetup:
    """The refusal of a kind of model, in one sentence."""
    return UnsupportedSetup(f"{what} cannot be served by the sparsekv backend: {why}; {remedy}")


@dataclass(frozen=True)
class ModelRefusal:
    """A kind of model that would get wrong answers, or fail once it is loaded.

    Attributes:
        name: the kind.
        applies: takes SGLang's `ModelConfig` and its resolved arguments.
        why: what stands in the way.
        remedy: what to do.
    """

    name: str
    applies: Callable[[Any, Any], bool]
    why: str
    remedy: str = ANOTHER


def check_model(model: Any, args: Any) -> None:
    """Refuse what a model's configuration tells.

    Args:
        model: SGLang's `ModelConfig`.
        args: SGLang's arguments as resolved so far.

    Raises:
        UnsupportedSetup: says what, why and what to do.
    """
    for refusal in MODEL_REFUSALS:
        if refusal.applies(model, args):
            raise unserved(refusal.name, refusal.why, refusal.remedy)


def _is_mla(model: Any, args: Any) -> bool:
    return bool(model.attention_arch.name == "MLA")


def _has_state(model: Any, args: Any) -> bool:
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return model.attention_arch.name == "SSM" or mambaish_config(model) is not None


def _text(name: str) -> Callable[[Any, Any], bool]:
    """Whether the language model's configuration sets a key."""
    return lambda model, args: bool(getattr(model.hf_text_config, name, None))


def _named(*architectures: str) -> Callable[[Any, Any], bool]:
    """Whether the model is of one of these architectures."""
    return lambda model, args: not {*architectures}.isdisjoint(model.hf_config.architectures)


_is_exaone_4 = _named("Exaone4ForCausalLM", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM")
_is_granite_swa = _named("GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM")


def _is_windowed_exaone(model: Any, args: Any) -> bool:
    windowed = getattr(model.hf_config, "sliding_window_pattern", None) is not None
    return windowed and _is_exaone_4(model, args)


def _has_sinks(model: Any, args: Any) -> bool:
    biases = ("add_swa_attention_sink_bias", "add_full_attention_sink_bias")
    found = _is_granite_swa(model, args) or any(_text(name)(model, args) for name in biases)
    return args.device == "cpu" and found


def _has_logit_cap(model: Any, args: Any) -> bool:
    return args.device == "cpu" and _text("attn_logit_softcapping")(model, args)


def _stores_fp8_keys(model: Any, args: Any) -> bool:
    """Whether `--kv-cache-dtype auto` would be an 8-bit cache, by the checkpoint's own words."""
    if args.kv_cache_dtype not in ("auto", None):
        return False
    told = getattr(model.hf_config, "quantization_config", None) or {}
    beside = Path(model.model_path) / "hf_quant_config.json"
    found = [told if isinstance(told, dict) else told.to_dict()]
    if beside.is_file():
        found.append(json.loads(beside.read_text()).get("quantization", {}))
    return any(str(one.get("kv_cache_quant_algo")).upper() == "FP8" for one in found)


MODEL_REFUSALS = (
    ModelRefusal(
        "dual chunk attention (`dual_chunk_attention_config`)",
        _text("dual_chunk_attention_config"),
        "this SGLang has no backend for it",
        "serve a copy of the model whose config.json lacks that key",
    ),
    ModelRefusal(
        "models that embed or score",
        lambda model, args: not model.is_generation,
        "they decode nothing, and it is decode that sparsekv makes sparse",
    ),
    ModelRefusal("MLA models", _is_mla, "their cache holds latents and not keys"),
    ModelRefusal(
        "encoder-decoder models",
        lambda model, args: bool(model.is_encoder_decoder),
        "cross-attention keeps no pages",
    ),
    ModelRefusal(
        "models with linear attention or state-space layers",
        _has_state,
        "they keep a state beside the pages",
    ),
    ModelRefusal("gpt-oss", _named("GptOssForCausalLM"), CLOSED),
    ModelRefusal(
        "Gemma 4",
        _named(
            "Gemma4ForCausalLM",
            "Gemma4ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
        ),
        CLOSED,
    ),
    ModelRefusal(
        "HRM-Text",
        _named("HrmTextForCausalLM"),
        "SGLang takes its triton backend for it, whatever is named",
    ),
    ModelRefusal(
        "DeepSeek V4",
        _named("DeepseekV4ForCausalLM"),
        "SGLang takes a backend of its own for it, whatever is named",
    ),
    ModelRefusal(
        "MiniMax M3",
        _named("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"),
        "an index of its own chooses what its layers read",
    ),
    ModelRefusal("EXAONE 4 with sliding windows", _is_windowed_exaone, CLOSED),
    ModelRefusal("models with attention sinks", _has_sinks, "no CPU kernel adds them", "use a GPU"),
    ModelRefusal(
        "models with a second KV pool for sliding-window layers",
        lambda model, args: bool(model.is_hybrid_swa),
        "page metadata is kept for one pool",
        "add --disable-hybrid-swa-memory, or use another backend",
    ),
    ModelRefusal(
        "models with logit caps", _has_logit_cap, "no CPU kernel applies them", "use a GPU"
    ),
    ModelRefusal(
        "checkpoints with an FP8 KV cache",
        _stores_fp8_keys,
        "page bounds are kept in the keys' own 16- or 32-bit type",
        "add --kv-cache-dtype bfloat16",
    ),
)
