"""A tiny random model of every family that SGLang knows and transformers can write."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .bare import BARE, FLAGS, write_bare
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
        known = self.model_class or self.architecture in BARE
        return None if known else "transformers has no such class"

    @property
    def flags(self) -> tuple[str, ...]:
        """Of every server of its model."""
        return () if self.model_class else FLAGS


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
    if kind is None:
        return write_bare(family.architecture, folder)
    model_type = kind.config_class.model_type
    config = small_config(kind.config_class, model_type)
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


def _rename(file: Path, old: str, new: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name.replace(old, new): value for name, value in load_file(file).items()}, file)


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
