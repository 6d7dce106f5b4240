"""`oracle`: rank units by their true attention mass. Reads every key; for measuring only."""

import torch

from ..ops import Ops
from ..types import ScoreInputs
from .base import SelectionMethod


class Oracle(SelectionMethod):
    """Score = log of the sum over the unit's tokens of exp(scale * q·k)."""

    name = "oracle"
    formula = "exact"
    tells_shares = True

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        return ops.score_exact(
            inputs.q,
            inputs.keys,
            inputs.candidates,
            inputs.scale,
            inputs.reduction,
            inputs.unit_size,
            inputs.known,
        )
