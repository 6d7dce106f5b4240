"""What an evaluation must know of a model before anything is asked, from its folder."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .tokens import Tokens

FEW_LAYERS = 4
"""Models with no more are made for tests; dense layers would answer for the sparse ones."""


@dataclass(frozen=True)
class Model:
    """A model's folder, read here.

    Attributes:
        folder: of the model.
        served: tokens of context that its server takes; None if that is not known.
    """

    folder: Path
    served: int | None = None

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise ValueError(f"model must be a folder with a config.json, got {str(self.folder)!r}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Of its text part."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        inner: dict[str, Any] = found.get("text_config", found)
        return inner

    @cached_property
    def tokens(self) -> Tokens:
        """Its tokenizer."""
        return Tokens(self.folder)

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer, by model and server; None if neither says."""
        found = [self.config.get("max_position_embeddings"), self.served]
        return min((limit for limit in found if isinstance(limit, int)), default=None)

    @property
    def dense_layers(self) -> int | None:
        """First layers that should read everything; None leaves it to the server."""
        layers = self.config.get("num_hidden_layers")
        return 0 if isinstance(layers, int) and layers <= FEW_LAYERS else None
