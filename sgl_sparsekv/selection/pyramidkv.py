"""`pyramidkv`: as `snapkv`, with more tokens in the first layers and fewer in the last.

PyramidKV, arXiv 2406.02069, section 3.2: an arithmetic sequence over the layers. Its steps are
rounded so that the budget is met exactly; the published code's integer steps exceed small budgets
by up to a quarter.
"""

from collections.abc import Sequence

import torch

from .apportion import pyramid
from .snapkv import SnapKV
from .view import Room


class PyramidKV(SnapKV):
    """A budget that falls from layer to layer."""

    name = "pyramidkv"
    citation = "PyramidKV, arXiv 2406.02069"

    def divide(self, scores: Sequence[torch.Tensor], room: Room) -> torch.Tensor:
        """See `ViewMethod.divide`."""
        there = torch.stack([layer.isfinite().sum(-1) for layer in scores])
        most, beta = int(there.max()), room.options.pyramid_beta
        rooms = pyramid(room.num_layers, min(room.tokens, most), most, beta)
        own = torch.tensor([rooms[layer] for layer in room.layers], device=there.device)
        return torch.minimum(there, own[:, None])
