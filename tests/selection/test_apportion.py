"""How a budget is divided over layers and KV heads, number by number."""

from fractions import Fraction

import torch

from sgl_sparsekv.selection.apportion import (
    blocks_of_a_request,
    heads_of_layers,
    largest_remainders,
)

NONE = -torch.inf


def test_what_is_cut_off_goes_where_most_was_cut() -> None:
    shares = [Fraction(5, 3), Fraction(4, 3), Fraction(2)]
    assert largest_remainders(shares, 5) == [2, 1, 2]
    assert largest_remainders([Fraction(1, 2)] * 2, 1) == [1, 0], "the first of equals"


def test_a_head_has_as_much_of_a_layer_as_of_its_best_scores() -> None:
    """Five of the six best are the second head's; a floor of a half gives the first two."""
    scores = torch.tensor([[1.0, 0, 0, 0, 9], [8, 7, 6, 5, 4]])
    assert heads_of_layers([scores], 3, Fraction(0)).tolist() == [[1, 5]]
    assert heads_of_layers([scores], 3, Fraction(1, 2)).tolist() == [[2, 4]]
    assert heads_of_layers([scores, scores.flip(0)], 3, Fraction(0)).tolist() == [[1, 5], [5, 1]]


def test_what_a_head_has_no_candidates_for_goes_to_the_next_that_won_most() -> None:
    """Up to its own; what is left then goes on."""
    few = torch.tensor([[1.0, 1, NONE, NONE, NONE], [9] * 5, [8, 8, 8, NONE, NONE]])
    assert heads_of_layers([few], 3, Fraction(0)).tolist() == [[1, 5, 3]]
    crowded = torch.tensor([[0.5, 0.5, 0.5, 0.5], [9, 9, NONE, NONE], [8, 8, 8, 8]])
    assert heads_of_layers([crowded], 3, Fraction(0)).tolist() == [[3, 2, 4]]
    tied = torch.full((2, 4), 1.0)
    assert heads_of_layers([tied], 1, Fraction(0)).tolist() == [[2, 0]], "the first of equals"


def test_a_floor_that_one_head_cannot_fill_goes_to_who_won_most() -> None:
    few = torch.tensor([[NONE] * 6, [1.0, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9, 9]])
    assert heads_of_layers([few], 3, Fraction(1)).tolist() == [[0, 3, 6]]
    full = torch.tensor([[9, 9, 9, 9, NONE, NONE], [5.0] * 6, [9, *[NONE] * 5]])
    assert heads_of_layers([full], 3, Fraction(1)).tolist() == [[4, 4, 1]], "no more than it has"


def test_the_cheapest_blocks_go_first_and_the_last_one_in_part() -> None:
    """Blocks of two, beside a token that is always kept: a first block holds one or two."""
    one = torch.tensor([[5.0, 1, 4, 2], [9, 9, NONE, 8]])
    every = torch.tensor([[4, 3]])
    for total in (7, 8):
        assert torch.equal(blocks_of_a_request([one], 1, total, 2), every), "there is room for all"
    # Block by block, cheapest first: head 0 gives 1; then 2 and 4; then 5; then head 1.
    kept = [blocks_of_a_request([one], 1, total, 2).tolist() for total in (6, 5, 4, 3, 2, 0)]
    assert kept == [[[3, 3]], [[2, 3]], [[1, 3]], [[0, 3]], [[0, 2]], [[0, 0]]]


def test_layers_give_up_blocks_among_each_other() -> None:
    cheap, dear = torch.tensor([[1.0, 2, 3]]), torch.tensor([[7.0, 8, 9]])
    kept = [blocks_of_a_request([dear, cheap], 0, total, 1).tolist() for total in (5, 3, 2)]
    assert kept == [[[3], [2]], [[3], [0]], [[2], [0]]]
    assert blocks_of_a_request([dear, dear], 0, 4, 3).tolist() == [[1], [3]], "the first of equals"
