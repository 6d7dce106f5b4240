"""A part of Qwen2.5-0.5B with random weights: what speed is measured on where no model is named.

Both its layers and its vocabulary are cut down by the same factor, so that attention has the share
of a decode step that it has in the whole model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}
QWEN_LAYERS = 24
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}
LLAMA_LAYERS = 16
POSITIONS = 262_144
"""So that an answer fits behind 128k tokens; a longer table of positions costs no time."""
DENSE_LAYERS = 2
"""Of a whole model, by default: the server option of that name."""


@dataclass(frozen=True)
class Shape:
    """A model's shape, whole or cut.

    Attributes:
        name: of the model.
        config: its `config.json`, but for the number of layers.
        layers: of the whole model.
    """

    name: str
    config: dict[str, Any]
    layers: int

    def cut(self, layers: int) -> dict[str, Any]:
        """`config.json` with fewer layers, and as few of the words: attention keeps its share."""
        words = self.config["vocab_size"] * layers // self.layers // 32 * 32
        ends = {"bos_token_id": 0, "eos_token_id": 1} if layers < self.layers else {}
        return {**self.config, "num_hidden_layers": layers, "vocab_size": words, **ends}

    def dense_layers(self, layers: int) -> int:
        """First layers of a cut model that sparse requests read in full."""
        return -(-DENSE_LAYERS * layers // self.layers)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen2.5-0.5b", QWEN, QWEN_LAYERS),
        Shape("llama-3.2-1b", LLAMA, LLAMA_LAYERS),
    )
}
"""2 KV heads of 64, and 8."""


@dataclass(frozen=True)
class Model:
    """What is served.

    Attributes:
        folder: its files.
        tokenizer: folder of its tokenizer.
        words: what it is, for a reader.
        flags: flags of the server that belong to it.
        positions: tokens of the longest request; None if the model does not say.
        dense_layers: first layers that sparse requests read in full; None: the server's default.
    """

    folder: Path
    tokenizer: Path
    words: str
    flags: tuple[str, ...]
    positions: int | None = None
    dense_layers: int | None = None


def named_model(folder: Path) -> Model:
    """A model that is there, with its own weights.

    Raises:
        ValueError: the folder has no `config.json`.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"model must be a folder with a config.json, got {folder}")
    config = json.loads((folder / "config.json").read_text())
    positions = config.get("text_config", config).get("max_position_embeddings")
    return Model(folder, folder, folder.name, (), positions)


def write_model(folder: Path, layers: int) -> Model:
    """Write configuration and tokenizer of the first `layers` layers; weights are SGLang's dummy.

    Every token id is a word of its own: `sglang.benchmark.serving` takes its first token from the
    text, and would not see an id that decodes to nothing. The tokenizer has a folder of its own:
    beside a configuration of Qwen, transformers makes every tokenizer one of Qwen's.

    Raises:
        ValueError: more layers than the whole model has, or none.
    """
    if not 1 <= layers <= QWEN_LAYERS:
        raise ValueError(f"layers must be in [1, {QWEN_LAYERS}], got {layers}")
    from sgl_sparsekv.models.tokenizer import SPECIALS, build_tokenizer

    shape = SHAPES["qwen2.5-0.5b"]
    config = shape.cut(layers)
    vocabulary = config["vocab_size"]
    words = [*SPECIALS, *(f"w{i}" for i in range(len(SPECIALS), vocabulary))]
    config |= {"bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": POSITIONS}
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    build_tokenizer(words, POSITIONS).save_pretrained(tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    return Model(
        folder,
        tokenizer,
        f"{layers} of the {QWEN_LAYERS} layers of Qwen2.5-0.5B's shape and {vocabulary:,} of its "
        f"{QWEN['vocab_size']:,} words, bfloat16, random weights",
        ("--load-format", "dummy"),
        POSITIONS,
        # Two of so few layers would be more of the model than two are of a whole one.
        shape.dense_layers(layers),
    )
