"""The attention layers of a model: which are ours, and how far the others look back.

A layer that SGLang serves itself reads all it can see, whatever its request asked for. Layers have
the numbers that SGLang gives them, so every pipeline stage speaks of the same ones.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedSetup
from ..selection.policy import BoolArray, IntArray
from .support import dense_reason

UNBOUNDED = 1 << 60
"""Tokens; more than any context."""


class ModelLayers:
    """Layers of all pipeline stages.

    Attributes:
        numbers: `[layers]`.
        reach: `[layers]`, newest tokens that a layer can see, the current one included.
        ours: `[layers]`; the others are SGLang's.
        last: this stage's last one.
        last_ours: the last one of this stage that is ours, -1 where none is.
    """

    def __init__(self, numbers: Sequence[int], reach: Sequence[int], ours: Sequence[bool]) -> None:
        self.numbers: IntArray = np.array(numbers, dtype=np.int64)
        self.reach: IntArray = np.array(reach, dtype=np.int64)
        self.ours: BoolArray = np.array(ours, dtype=bool)
        self.last = max(numbers)
        self.last_ours = int(self.numbers[self.ours].max(initial=-1))

    @classmethod
    def of(cls, modules: Iterable[Any]) -> "ModelLayers":
        """Layers of this stage, from its attention modules.

        Raises:
            UnsupportedSetup: none of them can be sparse.
        """
        modules = list(modules)
        windows = [module.sliding_window_size for module in modules]
        found = cls(
            [module.layer_id for module in modules],
            [window + 1 if window > -1 else UNBOUNDED for window in windows],
            [dense_reason(module) is None for module in modules],
        )
        if not found.ours.any():
            raise UnsupportedSetup(
                "no layer of this model can be sparse (see the log for why); use another backend"
            )
        return found

    def join(self, stages: Iterable["ModelLayers"]) -> None:
        """Take in the layers of every stage, this one's among them."""
        every = list(stages)
        self.numbers = np.concatenate([one.numbers for one in every])
        self.reach = np.concatenate([one.reach for one in every])
        self.ours = np.concatenate([one.ours for one in every])

    def leave_to_sglang(self, number: int) -> bool:
        """A layer turns out to be one that we cannot serve; whether that is news."""
        news = self.is_ours(number)
        self.ours[self.numbers == number] = False
        return news

    def is_ours(self, number: int) -> bool:
        """Whether we serve a layer."""
        return bool(self.ours[self.numbers == number].all())

    def in_reach(self, lengths: IntArray) -> IntArray:
        """Tokens `[rows]` that dense attention reads in contexts of `lengths`, over all layers."""
        read: IntArray = np.minimum(lengths[:, None], self.reach).sum(1, dtype=np.int64)
        return read

    def selecting(self, dense_layers: IntArray) -> IntArray:
        """How many layers `[rows]` are ours and not among a row's first `dense_layers`."""
        count: IntArray = (self.numbers >= dense_layers[:, None])[:, self.ours].sum(
            1, dtype=np.int64
        )
        return count


def layers_of_all_stages(modules: Iterable[Any]) -> ModelLayers:
    """Layers of the model, asked from the other pipeline stages where there are any."""
    from sglang.srt.runtime_context import get_parallel

    layers = ModelLayers.of(modules)
    parallel = get_parallel()
    if parallel.pp_size > 1:
        layers.join(parallel.pp_group.all_gather_object(layers))
    return layers
