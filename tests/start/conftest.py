"""SGLang with our plugins loaded, and a model that is a configuration alone."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .asking import COMMON, OURS

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


@pytest.fixture
def resolve_line(
    sglang_plugins: None,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Any], str | None]:
    """Parse and resolve a command line as the launcher does; the words it ends with, or None."""
    from sglang.srt.server_args import prepare_server_args

    environment, level = dict(os.environ), logging.getLogger().level
    common = ("--model-path", str(model), "--skip-tokenizer-init", *COMMON, *OURS)

    def resolved(case: Any) -> str | None:
        capsys.readouterr()
        try:
            prepare_server_args([*common, *case.arguments]).resolve_once()
        except SystemExit as ended:
            assert ended.code == 2, case
            lines = capsys.readouterr().err.splitlines()
            return next((line for line in reversed(lines) if "error" in line), "")
        finally:
            os.environ.clear()
            os.environ.update(environment)
            logging.getLogger().setLevel(level)
        return None

    return resolved
