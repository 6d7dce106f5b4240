"""`streaming`: sinks and the newest tokens, whatever the query (StreamingLLM).

The paper re-numbers positions inside its cache; here keys keep their true positions, as they must
in a shared cache.
"""

import torch

from ..ops import Ops
from ..types import ScoreInputs
from .base import SelectionMethod


class Streaming(SelectionMethod):
    """Score = logical position, so the budget left after sinks and window extends the window."""

    name = "streaming"
    formula = "position"
    citation = "StreamingLLM, arXiv 2309.17453"

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        table, heads = inputs.candidates.unit_table, inputs.q.shape[1]
        unit = torch.arange(table.shape[1], device=table.device)
        inside = (unit >= inputs.candidates.begin[:, None]) & (
            unit < inputs.candidates.end[:, None]
        )
        scores = torch.where(inside, unit.float(), -torch.inf)
        return scores[:, None, :].expand(-1, heads, -1).contiguous()
