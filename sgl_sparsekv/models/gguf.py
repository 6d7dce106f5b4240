"""A GGUF file as a transformers folder: its weights dequantised to bfloat16, its own tokenizer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Served, and taken over whole: of others transformers leaves out what changes their answers
(Gemma's scale of queries, Phi's share of rotated channels), or we cannot serve them."""
_BROKEN = (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, struct.error)
"""What readers and loaders raise for files that are cut off or hold what they do not know."""


def save_gguf(file: Path, folder: Path) -> None:
    """Writes the model of a GGUF file to `folder` in bfloat16, with its tokenizer.

    transformers' own loading would need `accelerate`; here its reader fills the model, and nothing
    of the file may be left over, as the reader passes over what it has no place for.

    Raises:
        ValueError: `file` is no GGUF file, is broken, or holds what would be lost or not served.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    names = _check(file)
    with _sentence(file):
        config = AutoConfig.from_pretrained(file.parent, **where)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        _fill(model, file, names)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)


def _check(file: Path) -> tuple[str, ...]:
    """Names of the file's tensors, if it can be taken over."""
    from transformers.integrations.gguf import read_gguf_metadata

    if not file.is_file():
        raise ValueError(f"FILE must be a GGUF file, got {str(file)!r}, which is not there")
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise ValueError(f"FILE must be a GGUF file, got {str(file)!r}, which begins otherwise")
    with _sentence(file):
        metadata: dict[str, Any]
        names: tuple[str, ...]
        metadata, names = read_gguf_metadata(str(file))
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"FILE must be of an architecture that can be read and served "
            f"({', '.join(ARCHITECTURES)}), got {architecture!r}"
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(
            f"FILE must have plain rotary positions, got {scaling!r} scaling, which "
            "transformers does not read from GGUF"
        )
    return names


def _fill(model: PreTrainedModel, file: Path, names: tuple[str, ...]) -> None:
    """Puts the file's tensors into a model on the meta device; all of them, into all of it."""
    from transformers import modeling_gguf_pytorch_utils as reader

    processor = reader.TENSOR_PROCESSORS.get(model.config.model_type, reader.TensorProcessor)
    places = reader.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    unread = sorted(set(names) - set(places))
    if unread:
        raise ValueError(f"transformers has no place for {', '.join(unread[:3])}")
    read = reader.load_gguf_checkpoint(
        str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
    )
    model.load_state_dict(read["tensors"], strict=False, assign=True)
    model.tie_weights()
    empty = [name for name, weight in model.named_parameters() if weight.is_meta]
    if empty:
        raise ValueError(f"it has nothing for {', '.join(empty[:3])}")


@contextmanager
def _sentence(file: Path) -> Iterator[None]:
    """What a reader says of a file, as one sentence about it."""
    try:
        yield
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"FILE must be a whole GGUF model, got {str(file)!r}: {reason}") from error
