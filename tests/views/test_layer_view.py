"""Lists of a layer, the ring of its last queries, and a packed row, number by number."""

from dataclasses import replace

import pytest
import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.views import LayerView, PackedRow, RequestView, lists_of
from sgl_sparsekv.views.attention import shares_of
from sgl_sparsekv.views.layer_view import GROWTH
from sgl_sparsekv.views.queries import LastQueries

MADE = 10
KEPT = [[0, 4, 7], [2]]
PLACES = [[20, 21, 22], [30]]
SCORES = [[0.5, 0.25, 0.125], [0.75]]


def rows(values: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(one) for one in values]


def view(packed: bool = False, kept: list[list[int]] = KEPT) -> LayerView:
    return LayerView.of(MADE, rows(kept), None, rows(PLACES) if packed else None)


def test_a_view_lists_what_was_kept_and_all_since() -> None:
    made = LayerView.of(MADE, rows(KEPT), [torch.tensor(one) for one in SCORES], rows(PLACES))
    assert made.counts.tolist() == [3, 1]
    assert made.scores is not None and made.places is not None
    assert made.scores.tolist() == [SCORES[0], [0.75, 0, 0]]
    assert made.positions.shape == made.places.shape == (2, 3 + GROWTH)
    assert made.positions.dtype == made.places.dtype == torch.int32
    assert made.positions[:, :5].tolist() == [[0, 4, 7, 10, 11], [2, 10, 11, 12, 13]]
    assert made.places[:, :5].tolist() == [[20, 21, 22, 10, 11], [30, 10, 11, 12, 13]]
    assert view().scores is None and view().places is None


def test_what_is_read_is_listed_with_nothing_behind_and_lies_where_it_was_moved() -> None:
    for made, lie in ((view(), [[0, 4, 7, 10, 11], [2, 10, 11, 0, 0]]),
                      (view(True), [[20, 21, 22, 10, 11], [30, 10, 11, 0, 0]])):  # fmt: skip
        listed, counts = made.listed(MADE + 2)
        assert counts.tolist() == [5, 3]
        assert listed.tolist() == [[0, 4, 7, 10, 11], [2, 10, 11, -1, -1]]
        assert made.lying(listed).tolist() == lie
    even = view(kept=[[1, 2], [3, 4]])
    listed, counts = even.listed(MADE)
    assert listed.tolist() == even.lying(listed).tolist() == [[1, 2], [3, 4]]


def test_lists_grow_with_the_answer() -> None:
    made, full = view(True), GROWTH
    assert made.reading(MADE + full) == [3 + full, 1 + full]
    assert made.positions.shape == (2, 3 + GROWTH), "there is room yet"
    assert made.reading(MADE + full + 1) == [4 + full, 2 + full]
    width = 2 * (4 + GROWTH)
    since = torch.arange(MADE, MADE + width)
    for found, begin in ((made.positions, KEPT), (made.where, PLACES)):
        expected = [torch.cat((torch.tensor(own), since))[:width].tolist() for own in begin]
        assert found.tolist() == expected and found.dtype == torch.int32
    plain = view()
    plain.reading(MADE + full + 1)
    assert plain.places is None and plain.positions.shape == (2, width)


def test_what_is_moved_lies_together_from_then_on() -> None:
    for made, lie, before in (
        (view(), [[0, 4, 5, 10], [2, 10, 11, 12]], [[4, 0], [7, 0]]),
        (view(True), [[20, 4, 5, 10], [30, 10, 11, 12]], [[21, 0], [22, 0]]),
    ):
        moved = made.between(4, 8)[:, :5].tolist()
        assert moved == [[False, True, True, False, False], [False] * 5]
        assert made.between(4, 7)[0, :3].tolist() == [False, True, False]
        sources = made.sources(4, 8)
        assert sources.tolist() == before and sources.dtype == torch.int64
        made.pack(4, 8)
        assert made.where[:, :4].tolist() == lie and made.where.dtype == torch.int32
        assert made.positions[0, :3].tolist() == KEPT[0], "positions stay"
        made.unpack()
        assert made.places is None


def test_rows_are_listed_side_by_side() -> None:
    views, slots = [view(), view(True)], [torch.arange(12), torch.arange(14)]
    lists = lists_of(views, slots)
    for own, one, positions, places in zip(
        views, lists.counts, lists.positions, lists.places, strict=True
    ):
        assert positions is own.positions and places is own.where
        assert len(one) == 2
    assert lists.counts == [[5, 3], [7, 5]] and lists.slots is slots


def test_places_that_hold_nothing_are_left_out_of_a_row() -> None:
    packed = PackedRow(16, 32, 64)
    assert packed.held([(0, 100)]) == [(0, 32), (64, 100)]
    assert packed.held([(0, 20), (40, 50), (60, 80)]) == [(0, 20), (64, 80)]
    assert packed.held([(32, 64)]) == packed.held([(8, 8)]) == []


def queries(first: int, end: int) -> torch.Tensor:
    """Of one head, each its position."""
    return torch.arange(first, end).float().view(-1, 1, 1, 1)


def held(ring: LastQueries, count: int = 9) -> list[int]:
    found, positions = ring.last(count)
    assert found.flatten().tolist() == positions.tolist()
    return list(map(int, positions))


def test_the_newest_queries_are_held() -> None:
    ring = LastQueries(4)
    assert (len(ring), ring.end) == (0, 0)
    with pytest.raises(AssertionError, match=r"^no query was seen$"):
        ring.last(1)
    for first, end, expected in (
        (0, 2, [0, 1]), (2, 3, [0, 1, 2]), (3, 9, [5, 6, 7, 8]), (9, 10, [6, 7, 8, 9]),
        (8, 9, [6, 7, 8]), (6, 7, [6]), (12, 14, [12, 13]), (14, 15, [12, 13, 14]), (3, 4, [3]),
    ):  # fmt: skip
        ring.add(queries(first, end), first)
        assert held(ring) == expected and (len(ring), ring.end) == (len(expected), end)
    ring.add(queries(4, 7), 4)
    assert held(ring, 2) == [5, 6]


def test_a_query_attends_to_itself_and_to_what_is_older() -> None:
    """And to nothing where all is younger."""
    q, keys = torch.zeros(3, 1, 2), torch.zeros(3, 2)
    shares = shares_of(q, torch.tensor([5, 9, 2]), keys, torch.tensor([3, 5, 7]), 1.0)
    expected = [[0.5, 0.5, 0.0], [1 / 3] * 3, [0.0] * 3]
    torch.testing.assert_close(shares[0], torch.tensor(expected))


OPTIONS = RequestOptions(
    method="snapkv", budget=96, sink=16, window=16, dense_layers=0, observation_window=4,
    renew_every=8,
)  # fmt: skip


def seen(options: RequestOptions, prompt: int, queries: int = 4) -> RequestView:
    """A view whose one layer saw some queries."""
    made = RequestView.of(options, prompt, 16)
    assert made is not None
    made.observe(3, torch.zeros(queries, 1, 1, 2), 0)
    return made


@pytest.mark.parametrize(
    ("prompt", "renew", "due"),
    [(100, 8, 100), (96, 8, 104), (50, 8, 104), (50, 0, 100), (97, 8, 97)],
)
def test_a_view_is_due_behind_a_long_prompt_or_when_the_answer_has_outgrown_the_budget(
    prompt: int, renew: int, due: int
) -> None:
    made = seen(replace(OPTIONS, renew_every=renew), prompt)
    for length in (prompt - 1, due - 1):
        assert not made.is_due(length)
    assert made.is_due(due)
    assert not seen(replace(OPTIONS, renew_every=renew), prompt, 3).is_due(due), "too few queries"


@pytest.mark.parametrize("every", (0, 1, 8))
def test_a_view_is_renewed_so_many_tokens_later(every: int) -> None:
    made = seen(replace(OPTIONS, renew_every=every), 100)
    made.made = 100
    due = [length for length in range(100, 120) if made.is_due(length)]
    assert due == (list(range(100 + every, 120)) if every else [])


def test_a_view_that_starts_over_is_that_of_the_same_request() -> None:
    made = seen(OPTIONS, 100)
    made.made = 100
    new = made.unmade()
    assert new.made == 0 and new.layers == {}
    assert (new._method, new._options, new._prompt, new._block) == (
        *(made._method, OPTIONS, 100, 16),
    )
    made.packed = PackedRow(0, 16, 96)
    with pytest.raises(AssertionError, match=r"^a packed row cannot be read as a whole$"):
        made.unmade()
