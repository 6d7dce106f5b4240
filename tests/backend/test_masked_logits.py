"""A row that a grammar masks whole is drawn from all the same."""

from types import SimpleNamespace

import pytest
import torch

from sgl_sparsekv.backend import masked_logits
from sgl_sparsekv.backend.masked_logits import keep_a_distribution

NONE = float("-inf")


def logits() -> torch.Tensor:
    return torch.tensor([[1.0, NONE, 2.0], [NONE, NONE, NONE], [NONE, 3.0, NONE]])


def test_only_rows_without_a_token_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_logits, "active_table", object)
    found = logits()
    keep_a_distribution(None, SimpleNamespace(grammar_mask=object()), found)
    assert torch.equal(found, torch.tensor([[1.0, NONE, 2.0], [0, 0, 0], [NONE, 3.0, NONE]]))
    assert found.softmax(-1).isfinite().all()


@pytest.mark.parametrize(("table", "mask"), [(None, object()), (object(), None)])
def test_nothing_is_touched_without_our_backend_or_a_grammar(
    table: object, mask: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_logits, "active_table", lambda: table)
    found = logits()
    keep_a_distribution(None, SimpleNamespace(grammar_mask=mask), found)
    assert torch.equal(found, logits())
