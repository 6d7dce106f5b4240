"""Two-level bounds: what is left out cannot matter, or is said to be left out."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.soak import Size

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.segment_records import SegmentBounds
from sgl_sparsekv.selection import load_method, two_level
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.two_level import MARGIN, OVERSAMPLING, SEGMENT
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

DEVICES = ("reference", "cpu")
HEADS, GROUP, DIM, UNIT = 2, 2, 32, 16
PER_SEGMENT = SEGMENT // UNIT


def scene(seed: int, lengths: tuple[int, ...], drift: float, missing: float = 0.0) -> ScoreInputs:
    """Rows over one pool; with `drift`, segments differ from one another as topics of a text do."""
    generator = torch.Generator().manual_seed(seed)
    units = [-(-n // UNIT) for n in lengths]
    order = torch.randperm(sum(units) + 1, generator=generator)[: sum(units)].int()
    table = torch.zeros(len(lengths), max(units), dtype=torch.int32)
    keys = torch.zeros((sum(units) + 1) * UNIT, HEADS, DIM)
    fields = torch.full((sum(units) + 1, HEADS, 2, DIM), torch.nan)
    records, bounds = [], torch.full((len(lengths), max(lengths) // SEGMENT), -1).int()
    ops, taken = load_ops("reference"), 0
    for row, (length, count) in enumerate(zip(lengths, units, strict=True)):
        table[row, :count] = order[taken : taken + count]
        taken += count
        topic = torch.randn(count // PER_SEGMENT + 1, HEADS, DIM, generator=generator) * drift
        own = torch.randn(count * UNIT, HEADS, DIM, generator=generator)
        own += topic.repeat_interleave(SEGMENT, 0)[: count * UNIT]
        slots = (table[row, :count, None].long() * UNIT + torch.arange(UNIT)).flatten()
        keys[slots] = own
        for segment in range(length // SEGMENT):
            if torch.rand(1, generator=generator) >= missing:
                bounds[row, segment] = len(records)
                rows = own[segment * SEGMENT : (segment + 1) * SEGMENT]
                records.append(Quest.summary.summarise(rows[None])[0])
    ops.summarise(Quest.summary, keys, fields, torch.arange(len(fields)))
    end = torch.tensor([(n - 64) // UNIT for n in lengths]).int()
    planes = torch.stack([*records, torch.full((HEADS, 2, DIM), torch.nan)])
    return ScoreInputs(
        q=torch.randn(len(lengths), HEADS, GROUP, DIM, generator=generator),
        keys=keys,
        fields={"min_max": fields},
        index=SegmentBounds(planes, bounds, SEGMENT),
        candidates=Candidates(table, torch.ones_like(end), end),
        num_units=torch.tensor(units).int(),
        counts=torch.tensor([min(count, 12) for count in units]).int(),
        scale=DIM**-0.5,
        reduction=Reduction.MAX_SOFTMAX,
        unit_size=UNIT,
    )


def chosen(device: str, method: str, inputs: ScoreInputs) -> torch.Tensor:
    """Logical units `[rows, H, n]`."""
    ops = load_ops(device)
    scores = load_method(method).score(ops, inputs)
    return ops.select(scores, inputs.candidates, inputs.num_units, inputs.counts).logical


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("drift", (0.0, 1.0, 4.0))
@pytest.mark.parametrize("missing", (0.0, 0.3))
def test_exact_mode_selects_the_pages_of_quest(
    device: str, drift: float, missing: float, size: Size
) -> None:
    """Flat Quest with the same reduction, whatever the keys and whichever bounds are missing."""
    for seed in range(size(3, 20)):
        inputs = scene(seed, (3000, 700, 5000, 120), drift, missing)
        flat = replace(inputs, reduction=Reduction.MAX)
        wanted = chosen(device, "quest", flat)
        assert torch.equal(chosen(device, "quest_two_level_exact", inputs), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ("quest_two_level", "quest_two_level_exact"))
def test_a_batch_without_a_candidate_looks_at_nothing(device: str, method: str) -> None:
    """Prompts of less than a page: a candidate would begin where the table ends."""
    inputs = scene(7, (10, 4), 0.0)
    scores = load_method(method).score(load_ops(device), inputs)
    assert scores.shape == (2, HEADS, 1) and scores.isneginf().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ("quest_two_level", "quest_two_level_exact"))
def test_only_candidates_have_scores(device: str, method: str) -> None:
    """Sinks and window lie in segments that are looked at."""
    inputs = scene(2, (1500, 700, 40), 1.0)
    scored = load_method(method).score(load_ops(device), inputs).isfinite().any(1)
    place, spans = torch.arange(scored.shape[1]), inputs.candidates
    inside = (place >= spans.begin[:, None]) & (place < spans.end[:, None])
    assert not bool((scored & ~inside).any()) and bool(scored[1, 1:39].all())


@pytest.mark.parametrize("device", DEVICES)
def test_most_pages_are_not_looked_at(device: str) -> None:
    """Approximate: by the budget, whatever the length. Exact: where segments differ."""
    ops, long = load_ops(device), scene(1, (20_000,), 4.0)
    seen = load_method("quest_two_level").score(ops, long).isfinite().sum(-1)
    limit = OVERSAMPLING * 12 * UNIT + SEGMENT
    assert int(seen.max()) <= limit // UNIT + PER_SEGMENT < 20_000 // UNIT // 4
    seen = load_method("quest_two_level_exact").score(ops, long).isfinite().sum(-1)
    assert int(seen.max()) < 20_000 // UNIT // 4


@pytest.mark.parametrize("method", ("quest_two_level", "quest_two_level_exact"))
def test_a_row_selects_alike_alone_and_in_a_batch(method: str) -> None:
    """However much the other rows look at."""
    inputs = scene(3, (3000, 700, 5000), 1.0, 0.2)
    together = chosen("reference", method, inputs)
    assert isinstance(inputs.index, SegmentBounds)
    for row in range(3):
        units = int(inputs.num_units[row])
        table = inputs.candidates.unit_table[row : row + 1, :units]
        begin, end = inputs.candidates.begin[row : row + 1], inputs.candidates.end[row : row + 1]
        alone = replace(
            inputs,
            q=inputs.q[row : row + 1],
            index=replace(inputs.index, table=inputs.index.table[row : row + 1]),
            candidates=Candidates(table, begin, end),
            num_units=inputs.num_units[row : row + 1],
            counts=inputs.counts[row : row + 1],
        )
        count = int(inputs.counts[row])
        wanted = chosen("reference", method, alone)[0]
        assert torch.equal(together[row, :, :count], wanted)


def test_a_page_that_is_far_better_is_found() -> None:
    """Approximate mode: the segment of a page that stands out is among the best."""
    inputs = scene(4, (20_000,), 0.0)
    page, at = 777, int(inputs.candidates.unit_table[0, 777])
    inputs.keys[at * UNIT] = 10 * inputs.q[0, :, 0]
    ops = load_ops("reference")
    ops.summarise(Quest.summary, inputs.keys, inputs.fields["min_max"], torch.tensor([at]))
    index, segment = inputs.index, page // PER_SEGMENT
    assert isinstance(index, SegmentBounds)
    members = inputs.candidates.unit_table[0, segment * PER_SEGMENT : (segment + 1) * PER_SEGMENT]
    fields = inputs.fields["min_max"][members.long()]
    low, high = fields[:, :, 0].amin(0), fields[:, :, 1].amax(0)
    index.planes[int(index.table[0, segment])] = torch.stack((low, high), 1)
    assert bool((chosen("reference", "quest_two_level", inputs) == page).any(-1).all())


class Rounds:
    """Stands in for looking at pages: answers in turn, the last one for ever."""

    def __init__(self, *answers: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.answers, self.looked_at = list(answers), []
        self.reductions: set[Reduction] = set()

    def __call__(
        self, ops: Any, inputs: ScoreInputs, reduction: Reduction, looked_at: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert not looked_at.is_floating_point()
        self.looked_at.append(looked_at.tolist())
        self.reductions.add(reduction)
        return self.answers[min(len(self.looked_at), len(self.answers)) - 1]


NOTHING_LEFT = -torch.inf
PAGES = 20


def page_scores(*best: float) -> torch.Tensor:
    """`[1, 1, PAGES]`, the best ones somewhere in the middle."""
    scores = torch.full((1, 1, PAGES), 1.0)
    scores[0, 0, 3 : 3 + len(best)] = torch.tensor(best)
    return scores


def rounds(
    monkeypatch: pytest.MonkeyPatch, counts: int, scores: torch.Tensor, left: float, begin: int = 2
) -> list[list[int]]:
    """Segments looked at, round by round, until what was `left` out once is nothing."""
    faked = Rounds((scores, torch.tensor([[left]])), (scores, torch.tensor([[NOTHING_LEFT]])))
    monkeypatch.setattr(two_level, "_scores", faked)
    row = [torch.tensor([n], dtype=torch.int32) for n in (begin, 16, PAGES, counts)]
    inputs = replace(
        scene(0, (PAGES * UNIT,), 0.0),
        candidates=Candidates(torch.zeros(1, PAGES).int(), row[0], row[1]),
        num_units=row[2],
        counts=row[3],
    )
    nothing: Any = None
    assert load_method("quest_two_level_exact").score(nothing, inputs) is scores
    assert faked.reductions == {Reduction.MAX}
    return faked.looked_at


@pytest.mark.parametrize("last", (8.0, -8.0))
@pytest.mark.parametrize(
    ("beyond", "again"), [(-1.5, False), (-1.0, True), (-0.5, True), (0.0, True), (0.5, True)]
)
def test_exact_mode_goes_on_while_a_segment_may_hold_a_page_of_the_selection(
    monkeypatch: pytest.MonkeyPatch, last: float, beyond: float, again: bool
) -> None:
    """Of 9 pages 6 are always read, so the third best decides; `beyond` it in margins."""
    scores = page_scores(last, 10.0, 9.0) if last > 0 else page_scores(-8.0, 10.0, 9.0)
    scores[scores == 1.0] = -100.0
    edge = torch.tensor(last)
    left = float(edge + beyond * (MARGIN * edge.abs()))
    looked_at = rounds(monkeypatch, 9, scores, left)
    assert looked_at == ([[2], [4]] if again else [[2]])


@pytest.mark.parametrize(
    ("counts", "left", "again"),
    [
        (9, 9.5, True), (9, 8.5, True), (9, 7.5, False), (6, 100.0, False), (6, 0.0, False),
        (5, 100.0, False), (7, 9.5, False), (7, 11.0, True), (7, torch.inf, True),
        (9, NOTHING_LEFT, False),
    ],
)  # fmt: skip
def test_the_page_that_decides_is_the_last_of_those_that_are_ranked(
    monkeypatch: pytest.MonkeyPatch, counts: int, left: float, again: bool
) -> None:
    """Where sinks and window are all, nothing that is left out can matter."""
    looked_at = rounds(monkeypatch, counts, page_scores(8.0, 10.0, 9.0), left)
    assert looked_at == (
        [[-(-counts // 8)], [2 * -(-counts // 8)]] if again else [[-(-counts // 8)]]
    )


def test_exact_mode_ends_when_everything_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no page has a score; where the last page of all decides, it is that one."""
    nothing = torch.full((1, 1, PAGES), -torch.inf)
    assert rounds(monkeypatch, 9, nothing, NOTHING_LEFT) == [[2]]
    falling = -torch.arange(float(PAGES))[None, None]
    monkeypatch.setattr(two_level, "SEGMENT", UNIT)
    assert rounds(monkeypatch, 24, falling, -19.5, begin=0) == [[24]]
    assert rounds(monkeypatch, 24, falling, -18.5, begin=0) == [[24], [48]]


def test_every_row_and_head_must_be_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many segments each time, for all rows."""
    inputs = scene(1, (3000, 700), 1.0)
    scores, left = (
        torch.ones(2, HEADS, inputs.candidates.unit_table.shape[1]),
        torch.zeros(2, HEADS),
    )
    unsafe = [left.clone() for _ in range(HEADS)]
    for head, one in enumerate(unsafe):
        one[1, head] = 5.0
    faked = Rounds(*((scores, one) for one in unsafe), (scores, left))
    monkeypatch.setattr(two_level, "_scores", faked)
    load_method("quest_two_level_exact").score(load_ops("reference"), inputs)
    assert faked.looked_at == [[2, 2], [4, 4], [8, 8]]


def test_approximate_mode_looks_once_at_so_many_times_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = replace(
        scene(1, (3000, 700), 1.0), counts=torch.tensor([9, 12]).int(),
        reduction=Reduction.MEAN_SOFTMAX,
    )  # fmt: skip
    scores = torch.ones(2, HEADS, 188)
    faked = Rounds((scores, torch.zeros(2, HEADS)))
    monkeypatch.setattr(two_level, "_scores", faked)
    assert load_method("quest_two_level").score(load_ops("reference"), inputs) is scores
    assert faked.looked_at == [[9, 12]] and faked.reductions == {Reduction.MEAN_SOFTMAX}


def test_tokens_fill_segments_rounded_up() -> None:
    found = two_level._segments_of(torch.tensor([0, 1, 127, 128, 129, 1024]))
    assert found.tolist() == [0, 1, 1, 1, 2, 8] and not found.is_floating_point()


@pytest.mark.parametrize("begin", (1, 8, 11))
@pytest.mark.parametrize("end", (56, 57, 59))
def test_the_best_segments_are_looked_at_and_the_best_left_out_is_told(
    begin: int, end: int
) -> None:
    """Of 7 segments, one without a bound, and the last, which is not whole."""
    inputs = scene(5, (7 * SEGMENT + 120,), 2.0)
    index = inputs.index
    assert isinstance(index, SegmentBounds)
    index.table[0, 4] = -1
    row = [torch.tensor([n], dtype=torch.int32) for n in (begin, end)]
    inputs = replace(inputs, candidates=Candidates(inputs.candidates.unit_table, *row))
    bounds = torch.full((HEADS, 8), -torch.inf)
    for segment in range(begin // PER_SEGMENT, -(-end // PER_SEGMENT)):
        record = int(index.table[0, segment]) if segment < 7 else -1
        if record < 0:
            bounds[:, segment] = torch.inf
            continue
        low, high = index.planes[record, :, 0, None], index.planes[record, :, 1, None]
        products = torch.maximum(inputs.q[0] * low, inputs.q[0] * high).sum(-1)
        bounds[:, segment] = products.amax(1) * inputs.scale
    unbounded = int((bounds[0] == torch.inf).sum())
    for looked_at in (0, 1, 3, 20):
        chosen, left = two_level._best_segments(
            load_ops("reference"), inputs, torch.tensor([looked_at])
        )
        for head in range(HEADS):
            live = int(bounds[head].isfinite().sum()) + unbounded
            count = min(looked_at + unbounded, live)
            order = bounds[head].argsort(descending=True, stable=True)
            found = [
                segment for segment in chosen[0, head].tolist() if segment >= begin // PER_SEGMENT
            ]
            assert found == sorted(order[:count].tolist())
            wanted = bounds[head, order[count]] if count < 8 else torch.tensor(-torch.inf)
            torch.testing.assert_close(left[0, head], wanted)


def test_where_no_segment_is_looked_at_the_best_of_all_is_left_out() -> None:
    """Of each row and head by itself."""
    inputs = scene(5, (700, 400), 2.0)
    end = torch.tensor([40, 24], dtype=torch.int32)  # whole segments
    inputs = replace(inputs, candidates=replace(inputs.candidates, end=end))
    nothing, best = two_level._best_segments(load_ops("reference"), inputs, torch.tensor([0, 0]))
    one, second = two_level._best_segments(load_ops("reference"), inputs, torch.tensor([1, 1]))
    assert nothing.shape == (2, HEADS, 0) and best.shape == (2, HEADS)
    assert one.shape == (2, HEADS, 1) and bool((best > second).all())


def test_a_row_without_candidates_is_not_looked_at() -> None:
    """What is asked of the device, a row for each head, ends with its chosen pages."""
    inputs = scene(5, (700, 120), 2.0)
    begin, end = inputs.candidates.begin, inputs.candidates.end.clone()
    end[1] = begin[1]
    inputs = replace(inputs, candidates=replace(inputs.candidates, end=end))
    ops, asked = load_ops("reference"), []

    def score(*args: Any) -> torch.Tensor:
        asked.append(args[3])
        return ops.score(*args)

    device: Any = SimpleNamespace(score=score, select=ops.select)
    scores = load_method("quest_two_level").score(device, inputs)
    assert bool(scores[1].isneginf().all()) and bool(scores[0].isfinite().any())
    bounds, pages = asked
    assert pages.begin.tolist() == [0] * 2 * HEADS and pages.end.dtype == torch.int32
    assert pages.end.tolist() == [*[5 * PER_SEGMENT] * HEADS, *[0] * HEADS]
    assert bounds.end.tolist() == [6, 6]


def test_scores_are_float32_whatever_the_queries_are() -> None:
    inputs = scene(5, (700,), 2.0)
    assert isinstance(inputs.index, SegmentBounds)
    half = replace(
        inputs,
        q=inputs.q.bfloat16(), keys=inputs.keys.bfloat16(),
        fields={name: field.bfloat16() for name, field in inputs.fields.items()},
        index=replace(inputs.index, planes=inputs.index.planes.bfloat16()),
    )  # fmt: skip
    assert load_method("quest_two_level").score(load_ops("reference"), half).dtype == torch.float32


def test_a_step_without_segment_bounds_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match=r"^no segment bounds$"):
        load_method("quest_two_level").score(
            load_ops("reference"), replace(scene(5, (700,), 2.0), index=None)
        )
