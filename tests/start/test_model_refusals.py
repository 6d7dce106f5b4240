"""What a model's configuration tells is refused before the weights load."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_sparsekv.errors import UnsupportedSetup

from .bare import write_bare
from .families import Family, small_config

KINDS = {
    "DeepseekV3ForCausalLM": "MLA models",
    "GptOssForCausalLM": "gpt-oss cannot be served",
    "Qwen3NextForCausalLM": "linear attention or state-space layers",
    "Gemma2ForCausalLM": "logit caps",
    "MellumForCausalLM": "add --disable-hybrid-swa-memory",
    "MllamaForConditionalGeneration": "encoder-decoder",
    "Qwen2ForSequenceClassification": "embed or score",
    "BertModel": "embed or score",
    "Gemma4ForConditionalGeneration": "Gemma 4 cannot be served",
    "Exaone4ForCausalLM": "EXAONE 4 with sliding windows",
    "GraniteSWAForCausalLM": "attention sinks",
    "HrmTextForCausalLM": "HRM-Text cannot be served",
    "DeepseekV4ForCausalLM": "DeepSeek V4 cannot be served",
    "MiniMaxM3SparseForConditionalGeneration": "MiniMax M3 cannot be served",
}


def write_config(folder: Path, architecture: str, **changes: Any) -> None:
    """A `config.json` of a small model of this family."""
    kind = Family(architecture).model_class
    if kind is None:
        write_bare(architecture, folder)
        return
    config = small_config(kind.config_class, kind.config_class.model_type)
    config.architectures = [architecture]
    (folder / "config.json").write_text(json.dumps(config.to_dict() | changes, default=str))


@pytest.mark.parametrize(("architecture", "says"), KINDS.items())
def test_each_kind_is_refused(resolve: Any, model: Path, architecture: str, says: str) -> None:
    """One sentence with the remedy, out of `config.json` alone."""
    write_config(model, architecture)
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
    write_config(model, "DeepseekV3ForCausalLM")
    assert resolve(attention_backend="torch_native", device="cpu").page_size is not None
