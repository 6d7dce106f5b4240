"""What a model's configuration tells is refused before the weights load."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_sparsekv.errors import UnsupportedSetup

from .families import small_config

KINDS = {
    "deepseek_v3": "MLA models",
    "gpt_oss": "gpt-oss cannot be served",
    "qwen3_next": "linear attention or state-space layers",
    "gemma2": "logit caps",
    "mellum": "add --disable-hybrid-swa-memory",
    "mllama": "encoder-decoder",
}


def write_config(folder: Path, model_type: str, **changes: Any) -> None:
    """A `config.json` of a small model of this type."""
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = {
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    config = small_config(CONFIG_MAPPING[model_type], model_type)
    config.architectures = [
        "MllamaForConditionalGeneration" if model_type == "mllama" else names[model_type]
    ]
    assert hasattr(transformers, config.architectures[0])
    (folder / "config.json").write_text(json.dumps(config.to_dict() | changes, default=str))


@pytest.mark.parametrize(("model_type", "says"), KINDS.items())
def test_each_kind_is_refused(resolve: Any, model: Path, model_type: str, says: str) -> None:
    """One sentence with the remedy, out of `config.json` alone."""
    write_config(model, model_type)
    with pytest.raises(UnsupportedSetup) as refused:
        resolve(attention_backend="sparsekv", device="cpu")
    words = str(refused.value)
    assert says in words and "cannot be served by the sparsekv backend" in words
    assert ";" in words and "\n" not in words


def test_an_fp8_cache_that_only_the_checkpoint_names(resolve: Any, model: Path) -> None:
    """`auto` would take it; naming a type serves."""
    (model / "hf_quant_config.json").write_text('{"quantization": {"kv_cache_quant_algo": "FP8"}}')
    with pytest.raises(UnsupportedSetup, match="add --kv-cache-dtype bfloat16"):
        resolve(attention_backend="sparsekv", device="cpu")
    args = resolve(attention_backend="sparsekv", device="cpu", kv_cache_dtype="bfloat16")
    assert args.kv_cache_dtype == "bfloat16"


def test_a_dense_server_is_not_asked(resolve: Any, model: Path) -> None:
    """Installed but not chosen, nothing is refused."""
    write_config(model, "deepseek_v3")
    assert resolve(attention_backend="torch_native", device="cpu").page_size is not None
