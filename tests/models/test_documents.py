"""Documents have the length asked for, hide each answer where they say, and repeat by seed."""

from __future__ import annotations

import itertools

import pytest

from sgl_sparsekv.models import (
    build_analytic_tokenizer,
    build_trained_tokenizer,
    chain_document,
    needle_document,
)
from sgl_sparsekv.models.documents import NUM_SINK, NUM_WINDOW, Document


def _check(document: Document, ids: list[int], tokens: list[str]) -> None:
    assert len(ids) == document.num_tokens
    for question in document.questions:
        assert tuple(tokens[p] for p in question.positions) == question.answer_tokens
        assert question.answer == " ".join(question.answer_tokens)
        assert min(question.positions) >= NUM_SINK
        assert max(question.positions) < document.num_tokens - NUM_WINDOW
        assert question.depth == question.positions[0] / document.num_tokens


@pytest.mark.parametrize("length", [512, 513, 4096, 32768])
def test_chain_document(length: int) -> None:
    document = chain_document(length)
    tokenizer = build_analytic_tokenizer()
    ids = tokenizer(document.text)["input_ids"]
    _check(document, ids, tokenizer.convert_ids_to_tokens(ids))
    for question in document.questions:
        assert len(set(document.pages(question))) == 16
    assert document == chain_document(length)
    assert document != chain_document(length, seed=1)


@pytest.mark.parametrize("length", [2048, 16384])
def test_needle_document(length: int) -> None:
    document = needle_document(length)
    tokenizer = build_trained_tokenizer()
    ids = tokenizer(document.text)["input_ids"]
    _check(document, ids, tokenizer.convert_ids_to_tokens(ids))
    depths = sorted(question.depth for question in document.questions)
    assert all(b - a < 0.15 for a, b in itertools.pairwise(depths))
    fact_ids = [i for i in ids if i >= 512]
    assert len(fact_ids) == len(set(fact_ids)) == 64 * 8
    assert document == needle_document(length)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="num_tokens must leave 16 pages"):
        chain_document(256)
    with pytest.raises(ValueError, match="num_tokens must be at least"):
        needle_document(512)
    with pytest.raises(ValueError, match="num_unasked must be"):
        needle_document(4096, num_questions=16, num_unasked=60)
    with pytest.raises(ValueError, match="num_questions must be at least 1"):
        chain_document(4096, num_questions=0)
