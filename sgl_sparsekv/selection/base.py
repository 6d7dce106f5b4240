"""What a selection method is."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from ..ops import Ops
from ..types import PageSummary, ScoreInputs


class SelectionMethod(ABC):
    """Scores candidate units; sinks, window, budget and top-k belong to the policy.

    Attributes:
        name: what users write.
        summary: page metadata the method reads, or None.
        formula: what a device that serves whole steps ranks by: "nothing", "position", the name of
            a page summary, or "exact"; "" when no such device can serve the method.
        dense: True when every unit is read and nothing is scored.
        citation: paper, or "" for our own.
    """

    name: ClassVar[str]
    summary: ClassVar[PageSummary | None] = None
    formula: ClassVar[str] = ""
    dense: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    @abstractmethod
    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """Score candidate units; higher is kept.

        Returns:
            float32 `[rows, H, U]`, -inf outside the candidates.
        """

    def missing_op(self, ops: Ops) -> str | None:
        """Name of an op this method needs and `ops` lacks, or None."""
        known = ops.summaries()
        if self.summary is None or known is None or self.summary.name in known:
            return None
        return f"summarise/score[{self.summary.name}]"


class SummaryMethod(SelectionMethod):
    """A method that ranks units by its page summary alone."""

    summary: ClassVar[PageSummary]

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        assert inputs.fields is not None, f"{self.name} got no page metadata"
        return ops.score(
            self.summary,
            inputs.q,
            inputs.fields,
            inputs.candidates,
            inputs.scale,
            inputs.reduction,
        )
