"""Methods that choose single tokens by the codes in segment records."""

import torch

from ..ops import Ops
from ..segment_records import ResidualIndex, SegmentIndex
from ..types import ScoreInputs
from .base import SelectionMethod
from .certificate import coded_ceilings


class CodedMethod(SelectionMethod):
    """Ranks tokens by what their codes stand for; tokens without a code by their own keys."""

    unit_size = 1

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        assert isinstance(inputs.index, (SegmentIndex, ResidualIndex)), f"{self.name} got no codes"
        return ops.score_codes(
            inputs.q,
            inputs.keys,
            inputs.index,
            inputs.candidates,
            inputs.scale,
            inputs.reduction,
            inputs.known,
        )

    def ceiling(self, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.ceiling`."""
        assert isinstance(inputs.index, (SegmentIndex, ResidualIndex)), f"{self.name} got no codes"
        return coded_ceilings(inputs, inputs.index)
