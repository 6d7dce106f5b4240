"""What a selection method is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ops import Ops
from ..summaries import CodeSummary, PageSummary, ResidualSummary, SegmentSummary
from ..types import ScoreInputs, Selection
from .certificate import unit_ceilings


@dataclass(frozen=True)
class IndexOptions:
    """How segments are indexed; a server's choice, as it shapes the memory of the records.

    Attributes:
        cluster_segment: tokens of a segment that `clusterkv` clusters.
        tokens_per_centroid: mean size of a cluster.
        pq_segment: tokens of a segment that shares a codebook in `pqcache`.
        pq_subspaces: sub-vectors of a key.
        pq_bits: bits of a sub-vector's code.
        residual_segment: tokens of a segment that shares clusters and codes in `residual_pq`.
        residual_subspaces: sub-vectors of what is left of a key there.
    """

    cluster_segment: int = 512
    tokens_per_centroid: int = 16
    pq_segment: int = 512
    pq_subspaces: int = 4
    pq_bits: int = 4
    residual_segment: int = 512
    residual_subspaces: int = 4


class SelectionMethod(ABC):
    """Scores candidate units; sinks, window, budget and top-k belong to the policy.

    Attributes:
        name: what users write.
        summaries: page metadata the method reads.
        unit_size: tokens of what it selects, a divisor of every server's unit; None: that unit.
        formula: what a device that serves whole steps ranks by: "nothing", "position", the name of
            a page summary, "exact", "own" (the planes that its summary brings kernels for), or the
            name of segment records; "" when no such device can serve the method.
        dense: True when every unit is read and nothing is scored.
        tells_shares: its scores with `ScoreInputs.known` are estimated shares of attention, so it
            serves `coverage` and `budget_split`.
        estimates: what is not read is estimated where a request does not say.
        narrows: it keeps a view of the request (`view.ViewMethod`) and scores nothing in a step.
        citation: paper, or "" for our own.
    """

    name: ClassVar[str]
    summaries: ClassVar[tuple[PageSummary, ...]] = ()
    unit_size: ClassVar[int | None] = None
    formula: ClassVar[str] = ""
    dense: ClassVar[bool] = False
    tells_shares: ClassVar[bool] = False
    estimates: ClassVar[bool] = False
    narrows: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    @abstractmethod
    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """Score candidate units; higher is kept.

        Returns:
            float32 `[rows, H, U]`, -inf outside the candidates; with `inputs.known` logs of
            estimated shares of attention.
        """

    def choose(self, ops: Ops, inputs: ScoreInputs) -> tuple[Selection, torch.Tensor] | None:
        """Score and select in one, and weigh the rest; None: it takes these steps one by one.

        Returns:
            what they do to the bit: see `Ops.choose`.
        """
        return None

    def ceiling(self, inputs: ScoreInputs) -> torch.Tensor | None:
        """Bounds of what could be left out, for a certificate of what was read.

        Returns:
            float64 `[rows, H, G, U]`, at least the log-sum-exp of scaled q·k over the keys of each
            candidate unit, -inf outside the candidates; None: the method knows no such bound.
        """
        bounded = [summary for summary in self.summaries if summary.ceiling is not None]
        return unit_ceilings(inputs, bounded[0]) if bounded else None

    def ranked_unit(self, whole: int) -> int:
        """Tokens of what it ranks in a step, where a server's units have `whole`."""
        return whole if self.narrows or self.unit_size is None else self.unit_size

    def segments(self, options: IndexOptions) -> SegmentSummary | None:
        """Segment records the method reads, or None."""
        return None

    def missing_op(self, ops: Ops) -> str | None:
        """Name of an op this method needs and `ops` lacks, or None."""
        known = ops.summaries()
        for summary in self.summaries:
            brought = bool(summary.kernels) and ops.takes_planes
            if known is not None and summary.name not in known and not brought:
                return f"summarise/score[{summary.name}]"
        coded = isinstance(self.segments(IndexOptions()), (CodeSummary, ResidualSummary))
        if coded and not ops.has_segments:
            return "index_segments/score_codes"
        return None


class SummaryMethod(SelectionMethod):
    """A method that ranks units by one page summary alone."""

    summary: ClassVar[PageSummary]
    shares: ClassVar[PageSummary | None] = None
    """The same field, scored for shares of attention; None: as for ranking."""

    def __init_subclass__(cls) -> None:
        cls.summaries = (cls.summary,)

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        summary = self.summary if inputs.known is None else self.shares or self.summary
        return ops.score(
            summary,
            inputs.q,
            inputs.fields[summary.name],
            inputs.candidates,
            inputs.scale,
            inputs.reduction,
            inputs.known,
        )
