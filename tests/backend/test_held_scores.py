"""Scores that serve several steps: for whom, how long, and what units that are new get."""

import pytest
import torch

from sgl_sparsekv.backend.held_scores import HeldScores
from sgl_sparsekv.types import Ranking

ROW, SERIAL, LENGTH, EVERY = 3, 7, 100, 4
SCORES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
LOWEST = torch.tensor([1.5, -torch.inf])
RANKING = Ranking(SCORES, LOWEST)


@pytest.fixture
def held() -> HeldScores:
    """Layer 1 of one row, held for four steps from 100 tokens on."""
    made = HeldScores()
    made.begin_step(ROW, SERIAL, LENGTH, EVERY)
    assert not made.holds(ROW, 1)
    made.store(ROW, 1, RANKING)
    return made


def test_scores_are_held_by_row_and_layer(held: HeldScores) -> None:
    assert held.holds(ROW, 1)
    assert not held.holds(ROW, 0) and not held.holds(ROW + 1, 1)


def test_a_row_that_will_hold_scores_is_known_before_it_does(held: HeldScores) -> None:
    held.begin_step(ROW + 1, SERIAL, LENGTH, EVERY)
    held.begin_step(ROW + 2, SERIAL, LENGTH, 1)
    assert held.any([ROW]) and held.any([ROW + 2, ROW + 1])
    assert not held.any([ROW + 2, ROW + 3]) and not held.any([])


@pytest.mark.parametrize(
    ("serial", "length", "every", "kept"),
    [
        (SERIAL, 100, EVERY, True),
        (SERIAL, 103, EVERY, True),
        (SERIAL, 104, EVERY, False),
        (SERIAL, 99, EVERY, False),
        (SERIAL + 1, 101, EVERY, False),
        (SERIAL, 101, 1, False),
        (SERIAL, 101, 2, True),
        (SERIAL, 102, 2, False),
    ],
)
def test_they_serve_their_request_for_its_steps(
    held: HeldScores, serial: int, length: int, every: int, kept: bool
) -> None:
    """Another request on the row, a rewind, and the step that selects again drop them."""
    held.begin_step(ROW, serial, length, every)
    assert held.holds(ROW, 1) is kept


def test_a_new_selection_counts_its_own_steps(held: HeldScores) -> None:
    held.begin_step(ROW, SERIAL, 104, EVERY)
    held.store(ROW, 0, RANKING)
    held.begin_step(ROW, SERIAL, 107, EVERY)
    assert held.holds(ROW, 0) and not held.holds(ROW, 1)
    held.begin_step(ROW, SERIAL, 108, EVERY)
    assert not held.holds(ROW, 0)


def test_who_selects_in_every_step_holds_nothing(held: HeldScores) -> None:
    held.begin_step(ROW, SERIAL, 101, 1)
    held.store(ROW, 1, RANKING)
    assert not held.holds(ROW, 1)
    held.begin_step(ROW + 1, SERIAL, 101, 1)
    held.store(ROW + 1, 1, RANKING)
    assert not held.holds(ROW + 1, 1)


@pytest.mark.parametrize("width", (1, 3, 5))
def test_units_without_a_score_rank_last(held: HeldScores, width: int) -> None:
    out = Ranking(torch.full((2, width), torch.nan), torch.full((2,), torch.nan))
    held.load(ROW, 1, out)
    expected = torch.full((2, width), -torch.inf)
    expected[:, : min(width, 3)] = SCORES[:, : min(width, 3)]
    assert torch.equal(out.scores, expected) and torch.equal(out.lowest, LOWEST)


def test_what_is_held_is_a_copy(held: HeldScores) -> None:
    given = Ranking(SCORES.clone(), LOWEST.clone())
    out = Ranking(torch.empty(2, 3), torch.empty(2))
    held.store(ROW, 2, given)
    given.scores.zero_()
    given.lowest.zero_()
    held.load(ROW, 2, out)
    assert torch.equal(out.scores, SCORES) and torch.equal(out.lowest, LOWEST)


def test_who_has_no_lowest_to_read_needs_none(held: HeldScores) -> None:
    out = Ranking(torch.empty(2, 3))
    held.store(ROW, 2, Ranking(SCORES))
    held.load(ROW, 2, out)
    assert torch.equal(out.scores, SCORES)
    with pytest.raises(AssertionError, match=r"^a request keeps its options$"):
        held.load(ROW, 2, Ranking(torch.empty(2, 3), torch.empty(2)))
