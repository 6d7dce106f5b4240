"""SGLang with our plugins loaded, and a model that is a configuration alone."""

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="session")
def sglang_plugins() -> None:
    """Load plugins in this process, as every SGLang process does."""
    from sglang.srt.plugins import load_plugins

    load_plugins()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a `config.json` and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


@pytest.fixture
def resolve(sglang_plugins: None, model: Path) -> Any:
    """Resolve SGLang's arguments for that model, as `Engine` does before it starts anything."""
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.server_args import ServerArgs

    def resolved(**flags: Any) -> Any:
        arguments = ServerArgs(model_path=str(model), skip_tokenizer_init=True, **flags)
        arguments.resolve_once()
        return resolved_view(arguments)

    return resolved
