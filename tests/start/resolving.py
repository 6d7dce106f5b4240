"""What a command line comes to before anything starts: it costs no server."""

import io
import json
import logging
import os
from contextlib import redirect_stderr
from pathlib import Path

from .asking import COMMON, OURS
from .flags import Case

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


def write_config(folder: Path) -> Path:
    """A folder with a `config.json` and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL))
    return folder


def resolve_line(case: Case, model: Path) -> str | None:
    """Parse and resolve a command line as the launcher does; the words it ends with, or None.

    SGLang's plugins must have been loaded.
    """
    from sglang.srt.server_args import prepare_server_args

    environment, level, said = dict(os.environ), logging.getLogger().level, io.StringIO()
    common = ("--model-path", str(model), "--skip-tokenizer-init", *COMMON, *OURS)
    try:
        with redirect_stderr(said):
            prepare_server_args([*common, *case.arguments]).resolve_once()
    except SystemExit as ended:
        assert ended.code == 2, case
        lines = said.getvalue().splitlines()
        return next((line for line in reversed(lines) if "error" in line), "")
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.getLogger().setLevel(level)
    return None
