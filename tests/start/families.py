"""A tiny random model of every family that SGLang knows and transformers can write."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .bare import BARE, flags_of, write_as, write_bare
from .processors import write_processor
from .sizes import LAYERS, RENAMED, SMALL, SPECIAL
from .tiny import SEED, change_config

LIKE = {
    "Contriever": "BertModel",
    "EmbeddingGemmaModel": "Gemma3ForCausalLM",
    "Ernie4_5_ForCausalLM": "Ernie4_5ForCausalLM",
    "ExaoneMoEForCausalLM": "ExaoneMoeForCausalLM",
    "IQuestCoderForCausalLM": "LlamaForCausalLM",
    "InternLM3ForCausalLM": "LlamaForCausalLM",
    "Lfm2BidirectionalModel": "Lfm2ForCausalLM",
    "LlamaEmbeddingModel": "LlamaForCausalLM",
    "LlamaForSequenceClassificationWithNormal_Weights": "LlamaForSequenceClassification",
    "MiMoForCausalLM": "Qwen2ForCausalLM",
    "OrionForCausalLM": "LlamaForCausalLM",  # beside a Llama it has biases, which begin as zeros
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "QuantMixtralForCausalLM": "MixtralForCausalLM",
    "Qwen2ForRewardModel": "Qwen2ForCausalLM",
    "Qwen3ForRewardModel": "Qwen3ForCausalLM",
    "TorchNativeLlamaForCausalLM": "LlamaForCausalLM",
    "TorchNativePhi3ForCausalLM": "Phi3ForCausalLM",
    "XverseForCausalLM": "LlamaForCausalLM",
}
"""Architectures that transformers knows by another name, which wrote their checkpoints."""

SHALLOW = {
    "num_hidden_layers": 2,
    "layer_types": ["full_attention"] * 2,
    "intermediate_size": 160,
}
"""A language model of these sizes says more than one thing with weights that SGLang makes up."""
MADE_UP: dict[str, dict[str, Any]] = {
    "Cohere2VisionForConditionalGeneration": {},
    "DiffusionGemmaForBlockDiffusion": {"language_model_only": True},
    "Ernie4_5_VLMoeForConditionalGeneration": {"im_patch_id": 5},
    "Gemma3ForConditionalGeneration": {},
    "Gemma3nForCausalLM": {},
    "Gemma3nForConditionalGeneration": {},
    "GlmAsrForConditionalGeneration": {},
    "GlmImageForConditionalGeneration": {},
    "HunYuanDenseV1ForCausalLM": {},
    "HunYuanMoEV1ForCausalLM": {"use_mixed_mlp_moe": False},
    "LlavaForConditionalGeneration": {},
    "Mistral3ForConditionalGeneration": {},
    "Qwen2AudioForConditionalGeneration": {"text_config": SHALLOW},
    "Qwen2VLForConditionalGeneration": {
        "vision_config": {"in_chans": 3},
        "text_config": SHALLOW,
    },
    "Qwen3OmniMoeForConditionalGeneration": {
        "thinker_config": {"vision_start_token_id": 5, "vision_end_token_id": 6}
    },
    "Qwen3VLMoeForConditionalGeneration": {},
    "VoxtralForConditionalGeneration": {},
    "WhisperForConditionalGeneration": {},
}
"""Families whose weights transformers writes otherwise than SGLang reads them: a configuration with
these keys beside, and weights that SGLang makes up."""


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

        if self.architecture in BARE:
            return None
        return getattr(transformers, LIKE.get(self.architecture, self.architecture), None)

    @property
    def untried(self) -> str | None:
        """Why no model of it is started; None: one is."""
        known = self.model_class or self.architecture in BARE
        return None if known else "transformers has no such class"

    @property
    def flags(self) -> tuple[str, ...]:
        """Of every server of its model."""
        made_up = self.model_class is None or self.architecture in MADE_UP
        return flags_of(self.architecture) if made_up else ()


def families() -> list[Family]:
    """Every architecture that SGLang serves, in order."""
    return [Family(name) for name in _names(native=True)]


def no_families() -> list[str]:
    """Names in SGLang's registry that no `config.json` has: `--model-impl` chooses them."""
    return _names(native=False)


def _names(native: bool) -> list[str]:
    from sglang.srt.configs.model_config import ModelImpl
    from sglang.srt.model_loader.utils import _model_impl_from_architecture
    from sglang.srt.models.registry import ModelRegistry

    names = sorted(ModelRegistry.get_supported_archs())
    own = ModelImpl.SGLANG
    return [name for name in names if (_model_impl_from_architecture(name) is own) is native]


def write_family(family: Family, folder: Path) -> Path:
    """A random model in float32 of it, with a tokenizer.

    Raises:
        Exception: transformers cannot build a small one.
    """
    kind = family.model_class
    if kind is None:
        return write_bare(family.architecture, folder)
    model_type = kind.config_class.model_type
    own = SPECIAL.get(family.architecture, {})
    config = small_config(kind.config_class, model_type, **own)
    if family.architecture in MADE_UP:
        said = merged(config.to_dict(), MADE_UP[family.architecture])
        write_as({**said, "architectures": [family.architecture]}, folder)
        if not said.get("language_model_only"):
            write_processor(model_type, folder)
        return folder
    torch.manual_seed(SEED)
    model = kind(config).to(torch.float32)
    for name, value in model.named_parameters():
        # Wide enough that attention decides what comes next, and no two logits tie.
        if value.dim() > 1 and "norm" not in name:
            torch.nn.init.normal_(value, std=0.08)
    model.save_pretrained(folder)
    # Some classes write another word for what they were given.
    change_config(folder, architectures=[family.architecture], **SPECIAL.get(model_type, {}))
    if model_type in RENAMED:
        _rename(folder / "model.safetensors", *RENAMED[model_type])
    write_processor(model_type, folder)
    return folder


def merged(said: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A configuration with these keys, those of its parts included."""
    parts = {k: merged(said.get(k) or {}, v) for k, v in more.items() if isinstance(v, dict)}
    return {**said, **more, **parts}


def _rename(file: Path, old: str, new: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name.replace(old, new): value for name, value in load_file(file).items()}, file)


def small_config(kind: Any, model_type: str, **own: Any) -> Any:
    """A configuration of this class with our sizes, or its own, those of its parts included."""
    defaults = kind()
    sizes = dict(_sizes(defaults, kind)) | SPECIAL.get(model_type, {}) | own
    parts = {
        name: small_config(type(part), part.model_type).to_dict()
        for name in getattr(kind, "sub_configs", {})
        if (part := getattr(defaults, name, None)) is not None
    }
    config = kind(**sizes, **parts)
    windowed = set(getattr(config, "layer_types", None) or ()) == {"sliding_attention"}
    if windowed and not isinstance(getattr(kind, "layer_types", None), property):
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
