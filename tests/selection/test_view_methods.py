"""What methods that keep views make of shares, number by number."""

import pytest
import torch

from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.view import ViewMethod, spread


def test_a_token_is_worth_the_best_of_its_neighbours_in_its_own_row() -> None:
    scores = torch.tensor([[0.0, 0, 9, 0], [0, 0, 0, 1]])
    assert spread(scores, 3).tolist() == [[0, 9, 9, 9], [0, 0, 1, 1]]
    assert spread(scores, 1).tolist() == scores.tolist()
    assert torch.equal(spread(scores[None, :, None], 3), spread(scores, 3)[None, :, None])


def test_snapkv_adds_queries_up_and_takes_the_mean_of_their_heads() -> None:
    method = load_method("snapkv")
    assert isinstance(method, ViewMethod)
    shares = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = spread(shares.sum(2).mean(1), 3)
    torch.testing.assert_close(method.weigh(shares, 3), expected)


def test_a_method_that_keeps_views_is_never_scored() -> None:
    with pytest.raises(AssertionError, match="snapkv keeps a view and is never scored"):
        load_method("snapkv").score(None, None)  # type: ignore[arg-type]
