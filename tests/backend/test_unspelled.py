"""A row that a grammar masks whole is drawn from all the same, and its request is refused."""

from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_sparsekv.backend import unspelled
from sgl_sparsekv.backend.unspelled import (
    keep_a_distribution,
    refuse_at_once,
    refuse_underway,
)

NONE = float("-inf")


def logits() -> torch.Tensor:
    return torch.tensor([[1.0, NONE, 2.0], [NONE, NONE, NONE], [NONE, 3.0, NONE]])


def test_only_rows_without_a_token_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unspelled, "active_table", object)
    found = logits()
    keep_a_distribution(None, SimpleNamespace(grammar_mask=object()), found)
    assert torch.equal(found, torch.tensor([[1.0, NONE, 2.0], [0, 0, 0], [NONE, 3.0, NONE]]))
    assert found.softmax(-1).isfinite().all()


@pytest.mark.parametrize(("table", "mask"), [(None, object()), (object(), None)])
def test_nothing_is_touched_without_our_backend_or_a_grammar(
    table: object, mask: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unspelled, "active_table", lambda: table)
    found = logits()
    keep_a_distribution(None, SimpleNamespace(grammar_mask=mask), found)
    assert torch.equal(found, logits())


class Grammar:
    """As much of SGLang's grammars as is read: which of four tokens may follow."""

    def __init__(self, allowed: tuple[int, ...]) -> None:
        self.allowed = allowed

    def allocate_vocab_mask(self, vocab: int, rows: int, device: str) -> torch.Tensor:
        return torch.zeros(rows, vocab, dtype=torch.bool, device=device)

    def fill_vocab_mask(self, mask: torch.Tensor, row: int) -> None:
        mask[row, list(self.allowed)] = True

    def apply_vocab_mask(self, logits: torch.Tensor, mask: torch.Tensor) -> None:
        logits.masked_fill_(~mask, NONE)


class Request:
    """As much of SGLang's `Req` as is read."""

    def __init__(self, allowed: tuple[int, ...], status: int | None, regex: str | None) -> None:
        self.sampling_params = SimpleNamespace(
            json_schema=None, regex=regex, ebnf=None, structural_tag=None
        )
        self.grammar = Grammar(allowed)
        self.vocab_size = 4
        self.output_ids: list[int] = []
        self.to_finish: Any = None
        if status is not None:
            self.to_finish = SimpleNamespace(message="SGLang's", status_code=status, err_type="")

    def set_finish_with_abort(self, message: str) -> None:
        self.to_finish = message


TOLD = "regex must be what tokens of the model can spell, got 'é+'"


def underway(
    allowed: tuple[int, ...] = (), status: int | None = 500, regex: str | None = "é+"
) -> Any:
    """Why a request ends behind a token that its grammar was told of, in both of SGLang's ways."""
    request = Request(allowed, status, regex)
    refuse_underway(None, None, request, 3)
    refuse_underway(None, None, req=request, next_token_id=3)
    return request.to_finish


def at_once(
    allowed: tuple[int, ...] = (), output: tuple[int, ...] = (), regex: str | None = "é+"
) -> Any:
    """Why a request ends before it is queued."""
    request = Request(allowed, None, regex)
    request.output_ids.extend(output)
    refuse_at_once(None, request)
    refuse_at_once(None, request, is_retracted=True)
    return request.to_finish


def test_a_grammar_without_a_token_is_the_requests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unspelled, "active_table", object)
    reason = underway()
    assert (reason.message, reason.err_type) == (TOLD, "BadRequestError")
    assert reason.status_code is HTTPStatus.BAD_REQUEST  # SGLang asks for its class
    assert at_once() == TOLD


def test_other_reasons_and_requests_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unspelled, "active_table", object)
    assert underway((2,)).message == underway(status=503).message == "SGLang's"
    assert underway(status=None) is None
    assert underway(regex=None).message == "SGLang's", "a grammar of SGLang's own"
    assert at_once((2,)) is None and at_once(output=(2,)) is None and at_once(regex=None) is None


def test_another_backends_requests_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unspelled, "active_table", lambda: None)
    assert underway().message == "SGLang's" and at_once() is None
