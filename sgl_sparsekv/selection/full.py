"""`full`: read everything. Dense attention, through the same kernels as every other method."""

import torch

from ..ops import Ops
from ..types import ScoreInputs
from .base import SelectionMethod


class Full(SelectionMethod):
    """Selects every unit."""

    name = "full"
    formula = "nothing"
    dense = True

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """Never needed: a dense method is not scored."""
        raise AssertionError("full selects everything and is never scored")
