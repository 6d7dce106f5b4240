"""How much of a needle a view kept."""

import pytest

from sgl_sparsekv.evaluation.kept import share_kept


@pytest.mark.parametrize(
    ("wanted", "share"),
    [
        ([0, 1], (1 + 0 + 1 + 0.5) / 4),
        ([4], 1 / 4),
        ([9, 10, 11], 1.0),
    ],
)
def test_it_is_a_mean_over_tokens_layers_and_heads(wanted: list[int], share: float) -> None:
    """Tokens from `made` on came since: they are read."""
    heads = {"2": [[0, 5, 4], [5, 4]], "7": [[0, 2, 7], [1, 1, 7]]}
    assert share_kept({"made": 9, "map": heads}, wanted) == share


def test_a_view_that_was_never_made_keeps_everything() -> None:
    assert share_kept({"made": 0, "map": {}}, [3, 4]) == 1.0
