"""What a group of rows chooses in one layer: by method, held scores, and a goal."""

from dataclasses import dataclass

import torch

from ..ops import Ops
from ..page_metadata import PageMetadata
from ..segment_records import ResidualIndex
from ..selection import SelectionMethod
from ..selection.sampling import covering_selection, sampled_ranking
from ..summaries import ResidualSummary
from ..types import Ranking, Reduction, Rest, ScoreInputs, Selection
from .held_scores import HeldScores
from .planner import RowGroup
from .segment_indexes import SegmentIndexes


@dataclass(frozen=True)
class Chooser:
    """What choosing needs of a backend.

    Attributes:
        ops: of its device.
        metadata: of its pool.
        indexes: segment records of its methods.
        held: scores of earlier steps.
        reduction: from query heads to one score.
    """

    ops: Ops
    metadata: PageMetadata
    indexes: SegmentIndexes
    held: HeldScores
    reduction: Reduction


@dataclass(frozen=True)
class GroupChoice:
    """One group's choice in one layer.

    Attributes:
        by: what it needs of the backend.
        group: rows that choose by one method.
        rows: their rows of `req_to_token`.
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`, the pool's K of the layer.
        scale: softmax scale.
        layer: place of the layer in the pool.
    """

    by: Chooser
    group: RowGroup
    rows: list[int]
    q: torch.Tensor
    keys: torch.Tensor
    scale: float
    layer: int

    @property
    def _method(self) -> SelectionMethod:
        assert self.group.method is not None, "the group reads everything"
        return self.group.method

    def made(self) -> tuple[Selection, Rest | None]:
        """What the group reads, and what answers for the rest of it, if clusters do."""
        group, holding = self.group, self.by.held.any(self.rows)
        if group.rest is None:
            return self._selection(holding), None
        chosen = None
        if group.goal is None and not holding:
            chosen = self._method.choose(self.by.ops, self.inputs())
        if chosen is None:
            selection = self._selection(holding)
            chosen = selection, self._weights(selection)
        return chosen[0], Rest(chosen[1], self._clusters())

    def inputs(self, known: torch.Tensor | None = None) -> ScoreInputs:
        """What the method may look at; `known` as of `ScoreInputs`."""
        group, metadata, index = self.group, self.by.metadata, None
        if group.records is not None:
            index = self.by.indexes.of(self._method.name).view(self.layer, group.records)
        return ScoreInputs(
            q=self.q,
            keys=self.keys,
            fields={s.name: metadata.fields(s.name, self.layer) for s in self._method.summaries},
            index=index,
            candidates=group.candidates,
            num_units=group.num_units,
            counts=group.counts,
            scale=self.scale,
            reduction=self.by.reduction if known is None else Reduction.MEAN_SOFTMAX,
            unit_size=group.unit_size,
            known=known,
        )

    def _weights(self, selection: Selection) -> torch.Tensor:
        """What clusters of the rest weigh, as `Ops.weigh` returns it."""
        group, size = self.group, self.group.unit_size
        reach = group.counts * size * ResidualSummary.REACH
        spans = group.candidates.in_tokens(size)
        how = (self.scale, self.by.reduction, reach, size)
        return self.by.ops.weigh(self.q, self._clusters(), spans, selection, *how)

    def _clusters(self) -> ResidualIndex:
        """Records that answer for what the group does not read."""
        records, index = self.group.rest, self.by.indexes.rest
        assert records is not None and index is not None
        clusters = index.view(self.layer, records)
        assert isinstance(clusters, ResidualIndex)
        return clusters

    def _selection(self, holding: bool) -> Selection:
        """The best units; `holding` scores for later steps, or some of earlier ones."""
        group, ops = self.group, self.by.ops
        units, counts = (group.candidates, group.num_units), group.counts
        if group.goal is None:
            return ops.select(self._ranking().scores, *units, counts)
        if not holding:
            return covering_selection(ops, *self._shares(), group.goal)
        ranking = self._ranking()
        assert ranking.lowest is not None
        how = (counts, ranking.lowest, group.goal.pooled)
        return ops.select(ranking.scores, *units, ops.allot(ranking.scores, *units, *how))

    def _ranking(self) -> Ranking:
        """A held one where a row does not reselect, else the method's."""
        held, layer = self.by.held, self.layer
        old = [i for i, row in enumerate(self.rows) if held.holds(row, layer)]
        if len(old) == len(self.rows):
            shape = (len(old), self.q.shape[1], self.group.candidates.unit_table.shape[1])
            scores = self.q.new_empty(shape, dtype=torch.float32)
            lowest = None if self.group.goal is None else scores.new_empty(shape[:2])
            ranking = Ranking(scores, lowest)
        else:
            ranking = self._ranked()
        for i, row in enumerate(self.rows):
            (held.load if i in old else held.store)(row, layer, ranking.row(i))
        return ranking

    def _ranked(self) -> Ranking:
        """What the method says; where there is a goal, held against a sample."""
        if self.group.goal is None:
            return Ranking(self._method.score(self.by.ops, self.inputs()))
        return sampled_ranking(self.by.ops, *self._shares(), self.group.goal.coverage)

    def _shares(self) -> tuple[torch.Tensor, ScoreInputs]:
        """Scores as shares of all attention, and what they were made from."""
        group, ops = self.group, self.by.ops
        assert group.kept is not None
        how = (group.tails, self.scale, group.unit_size)
        inputs = self.inputs(ops.known(self.q, self.keys, group.kept, *how))
        return self._method.score(ops, inputs), inputs
