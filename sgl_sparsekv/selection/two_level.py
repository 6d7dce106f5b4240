"""`quest_two_level`: Quest, with pages looked at only in segments that may hold good ones.

At long contexts the bounds of all pages outweigh what is selected (LServe, arXiv 2502.14866,
measures its page selector at twice the attention). So the same bound is kept for segments of 128
tokens as well: a segment's minimum and maximum enclose those of its pages, so its bound is at least
theirs. Segments are ranked first, and pages only in the best of them:

    quest_two_level         in as many segments as hold 8 times the budget; reads what depends on
                            the budget and 1/8 of the bounds
    quest_two_level_exact   in the best segments, twice as many each time, until no segment that is
                            left can hold a page that belongs to the selection: the pages of Quest

Exactness needs scores that do not depend on pages not looked at, so it is Quest's with the
reduction "max". Pages behind the last whole segment, and of segments without a record, are always
looked at.
"""

import torch

from ..geometry import ceil_div
from ..ops import Ops
from ..segment_records import SegmentBounds
from ..summaries import BoundSummary
from ..types import Candidates, Reduction, ScoreInputs
from .base import IndexOptions, SelectionMethod
from .quest import Quest

SEGMENT = 128
"""Tokens that share a bound of the upper level."""
OVERSAMPLING = 8
"""Tokens looked at by page, in multiples of the budget."""
MARGIN = 1e-4
"""Relative: the two bounds are sums in float32 that may be taken in another order."""
BOUNDS = BoundSummary("min_max_segment", SEGMENT, Quest.summary)


class TwoLevel(SelectionMethod):
    """Upper-bound page ranking in the best segments."""

    name = "quest_two_level"
    formula = "two_level"
    citation = "Quest, arXiv 2406.10774"
    summaries = (Quest.summary,)

    def segments(self, options: IndexOptions) -> BoundSummary:
        """See `SelectionMethod.segments`."""
        return BOUNDS

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        looked_at = _segments_of(OVERSAMPLING * inputs.counts * inputs.unit_size)
        return _scores(ops, inputs, inputs.reduction, looked_at)[0]


class TwoLevelExact(TwoLevel):
    """The pages that Quest selects with reduction "max", most of them not looked at."""

    name = "quest_two_level_exact"
    formula = "two_level_exact"

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        candidates = inputs.candidates
        ranked = inputs.counts - inputs.num_units + candidates.end - candidates.begin
        looked_at = _segments_of(inputs.counts * inputs.unit_size)
        while True:
            scores, left = _scores(ops, inputs, Reduction.MAX, looked_at)
            ordered = scores.sort(-1, descending=True).values
            place = (ranked - 1).clamp(0, ordered.shape[-1] - 1).long()
            place = place[:, None, None].expand(-1, scores.shape[1], 1)
            last = ordered.gather(-1, place)[..., 0]  # of those that are selected
            safe = (left < last - MARGIN * last.abs()) | (ranked < 1)[:, None] | left.isneginf()
            if bool(safe.all()):
                return scores
            looked_at = 2 * looked_at


def _segments_of(tokens: torch.Tensor) -> torch.Tensor:
    """Segments that hold so many tokens, rounded up."""
    return (tokens + SEGMENT - 1) // SEGMENT


def _scores(
    ops: Ops, inputs: ScoreInputs, reduction: Reduction, looked_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look at the pages of the best segments of each row and KV head.

    Args:
        ops: the device.
        inputs: with segment bounds.
        reduction: for pages; segments are ranked by the group's highest bound.
        looked_at: int `[rows]`, segments, besides those without a bound.

    Returns:
        float32 `[rows, H, U]` with -inf for pages not looked at, and float32 `[rows, H]`: the
        highest bound of a segment that was left out, -inf where none was.
    """
    q, candidates = inputs.q, inputs.candidates
    rows, heads, group, dim = q.shape
    per_segment, units = SEGMENT // inputs.unit_size, candidates.unit_table.shape[1]
    segments, left = _best_segments(ops, inputs, looked_at)
    begin, end = candidates.begin[:, None, None], candidates.end[:, None, None]
    unit = (segments.long()[..., None] * per_segment + torch.arange(per_segment)).flatten(2)
    inside = (unit >= begin) & (unit < end)
    # Pages of a chosen segment that are no candidates have no metadata: the first candidate stands
    # in for them, and what it scores goes nowhere.
    table = candidates.unit_table[:, None].expand(rows, heads, units)
    table = table.gather(-1, torch.where(inside, unit, begin.clamp(max=units - 1)))
    # Every (row, KV head) has pages of its own, so it becomes a row with one KV head.
    table = (table * heads + torch.arange(heads, dtype=torch.int32)[:, None]).flatten(0, 1)
    ends = (segments >= 0).sum(-1) * per_segment * (candidates.begin < candidates.end)[:, None]
    ends = ends.flatten().int()
    fields = inputs.fields[Quest.summary.name]
    found = ops.score(
        Quest.summary,
        q.reshape(rows * heads, 1, group, dim),
        fields.view(-1, 1, *fields.shape[2:]),
        Candidates(table, torch.zeros_like(ends), ends),
        inputs.scale,
        reduction,
    )
    scores = q.new_full((rows, heads, units + 1), -torch.inf, dtype=torch.float32)
    scores.scatter_(-1, torch.where(inside, unit, units), found.view(rows, heads, -1))
    return scores[..., :units].contiguous(), left


def _best_segments(
    ops: Ops, inputs: ScoreInputs, looked_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments to look at, int32 `[rows, H, n]` padded with -1, and the best bound left out."""
    index, candidates = inputs.index, inputs.candidates
    assert isinstance(index, SegmentBounds), "no segment bounds"
    rows, per_segment = len(looked_at), SEGMENT // inputs.unit_size
    segments = ceil_div(candidates.unit_table.shape[1], per_segment)
    table = index.table[:, :segments]
    table = torch.nn.functional.pad(table, (0, segments - table.shape[1]), value=-1)
    first = candidates.begin // per_segment  # segments before it hold sinks alone
    last = (candidates.end + per_segment - 1) // per_segment
    zero = torch.zeros(rows, dtype=torch.int32)
    every = Candidates(table.clamp(min=0), zero, zero + segments)
    bounds = ops.score(Quest.summary, inputs.q, index.planes, every, inputs.scale, Reduction.MAX)
    place = torch.arange(segments)
    live = (place >= first[:, None]) & (place < last[:, None])
    unbounded = live & (table < 0)
    bounds = bounds.masked_fill(unbounded[:, None], torch.inf)
    bounds = bounds.masked_fill(~live[:, None], -torch.inf)
    counts = (first + looked_at + unbounded.sum(-1)).minimum(last).int()
    chosen = ops.select(bounds, Candidates(every.unit_table, first, last), last, counts).logical
    if not chosen.shape[-1]:
        return chosen, bounds.amax(-1)
    seen = torch.where(chosen < 0, chosen[..., :1], chosen).clamp(min=0).long()
    return chosen, bounds.scatter(-1, seen, -torch.inf).amax(-1)
