"""`residual_pq`: rank tokens by clusters and codes of what is left of their keys.

An inverted file with residual product quantisation (Jegou et al., TPAMI 2011) in segments of 512
tokens: 16 centroids, and 16 codes for each quarter of what a key differs from its own, so q·key is
a sum of five table entries that lie in registers. Clusters are looked at first, and only tokens of
the best ones by their codes. Clusters keep their mean value as well, so what is not read is
estimated by default, with centroids and mean values.
"""

import torch

from ..ops import Ops
from ..segment_records import ResidualIndex
from ..segments.residual import residuals
from ..summaries import ResidualSummary
from ..types import ScoreInputs, Selection
from .base import IndexOptions
from .coded import CodedMethod


class ResidualPQ(CodedMethod):
    """Token ranking by table look-up, and an estimate of the rest."""

    name = "residual_pq"
    formula = "residuals"
    citation = "Product quantization for nearest neighbor search, TPAMI 2011"
    estimates = True
    tells_shares = True

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        assert isinstance(inputs.index, ResidualIndex), f"{self.name} got no records"
        return ops.score_codes(
            inputs.q,
            inputs.keys,
            inputs.index,
            inputs.candidates,
            inputs.scale,
            inputs.reduction,
            inputs.known,
            inputs.counts * ResidualSummary.REACH,
        )

    def choose(self, ops: Ops, inputs: ScoreInputs) -> tuple[Selection, torch.Tensor]:
        """See `SelectionMethod.choose`."""
        return ops.choose(inputs, ResidualSummary.REACH)

    def segments(self, options: IndexOptions) -> ResidualSummary:
        """See `SelectionMethod.segments`."""
        return residuals(options.residual_segment, options.residual_subspaces)
