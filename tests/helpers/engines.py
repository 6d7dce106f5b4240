"""Three engines in one process, of which two are ours: run in a process of its own.

`python -m tests.helpers.engines FOLDER` prints JSON: what each answered or refused.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

SMALL, LARGE = 512, 4096
"""Vocabularies."""


def write_config(folder: Path, vocab_size: int) -> str:
    """A folder with the configuration of a tiny Llama; its weights are made up at load."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    path = folder / str(vocab_size)
    config.save_pretrained(path)
    return str(path)


def start(model: str, backend: str, methods: str = "full") -> Any:
    """An engine; ours serves one method."""
    import sglang

    os.environ["SGL_SPARSEKV_CONFIG"] = json.dumps({"method": methods, "methods": methods})
    return sglang.Engine(
        model_path=model,
        load_format="dummy",
        skip_tokenizer_init=True,
        attention_backend=backend,
        device="cpu",
        max_total_tokens=1024,
        log_level="error",
    )


def ask(engine: Any, token: int, method: str | None = None) -> str:
    """ "answered", or why not."""
    params: dict[str, Any] = {"max_new_tokens": 1}
    if method is not None:
        params["custom_params"] = {"sparsekv": {"method": method}}
    try:
        engine.generate(input_ids=[[token, 1, 2]], sampling_params=params)
    except ValueError as error:
        return str(error)
    return "answered"


def main(folder: Path) -> None:
    """Two of ours side by side, then a dense one of a larger vocabulary."""
    small, large = write_config(folder, SMALL), write_config(folder, LARGE)
    quest, full = start(small, "sparsekv", "quest"), start(small, "sparsekv", "full")
    found = {
        "quest asked for quest": ask(quest, 5, "quest"),
        "quest asked for full": ask(quest, 5, "full"),
        "full asked for full": ask(full, 5, "full"),
        "full asked for quest": ask(full, 5, "quest"),
        "ours, a token too large": ask(full, LARGE - 96),
    }
    quest.shutdown()
    full.shutdown()
    dense = start(large, "torch_native")
    found["dense, that token"] = ask(dense, LARGE - 96)
    dense.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
