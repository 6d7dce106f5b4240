"""`adakv`: as `snapkv`, the tokens of a layer divided among its KV heads by what they attend to.

AdaKV, arXiv 2407.11550, section 4: the best scores of all heads of a layer together say how many
each head keeps, and a part of the even share is each head's own in any case. With tensor
parallelism the heads of a rank share among themselves.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch

from .apportion import heads_of_layers
from .snapkv import SnapKV
from .view import Room


class AdaKV(SnapKV):
    """A budget per layer."""

    name = "adakv"
    citation = "AdaKV, arXiv 2407.11550"

    def divide(self, scores: Sequence[torch.Tensor], room: Room) -> torch.Tensor:
        """See `ViewMethod.divide`."""
        floor = Fraction(str(room.options.head_floor))
        return heads_of_layers(scores, room.tokens, floor)
