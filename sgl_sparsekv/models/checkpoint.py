"""A training behind its last finished stage, in one file, for a run that goes on from there."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sgl_sparsekv.tooling.journal import check_free, check_same


class Checkpoint:
    """Weights, optimizers and random numbers; the file is gone when the training has ended."""

    def __init__(self, path: Path | None = None, resume: bool = False) -> None:
        """Look at the file.

        Args:
            path: of it; None: nothing is kept.
            resume: go on with it if it is there.

        Raises:
            ValueError: it is there and `resume` is false.
        """
        self.path = path
        if path is not None:
            check_free(path, resume)
        self._recipe: dict[str, Any] = {}
        self._parts: tuple[torch.nn.Module, Sequence[torch.optim.Optimizer], random.Random]

    def restore(
        self,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        rng: random.Random,
        recipe: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Bring a training to where the file left it.

        Args:
            model: as the training begins; its weights are replaced.
            optimizers: of it; so is their state.
            rng: what batches are drawn from.
            recipe: what must be the same in both runs.

        Returns:
            Notes of the last `save`; empty where there is no file.

        Raises:
            ValueError: the file is of another recipe.
        """
        self._parts, self._recipe = (model, optimizers, rng), dict(recipe)
        if self.path is None or not self.path.exists():
            return {}
        found = torch.load(self.path, weights_only=True)
        check_same(self.path, found["recipe"], self._recipe)
        model.load_state_dict(found["model"])
        for optimizer, state in zip(optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        rng.setstate(found["rng"])
        notes: dict[str, Any] = found["notes"]
        return notes

    def save(self, notes: Mapping[str, Any]) -> None:
        """Write where the training is, in place of what was written before."""
        if self.path is None:
            return
        model, optimizers, rng = self._parts
        state = {
            "recipe": self._recipe,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "rng": rng.getstate(),
            "notes": dict(notes),
        }
        written = self.path.with_name(f"{self.path.name}.new")
        torch.save(state, written)
        os.replace(written, self.path)

    def finish(self) -> None:
        """Take the file away: the model stands elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
