"""The analytic model walks its chain exactly, and says so when a page is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgl_sparsekv.models import (
    LOST,
    AnalyticConfig,
    build_analytic,
    build_analytic_tokenizer,
    chain_document,
    save_analytic,
)
from sgl_sparsekv.models.codes import identity_codes, key_codes
from sgl_sparsekv.models.simulate import Selector, accuracy, answers

SMALL = AnalyticConfig(num_layers=2, retrieve_layer=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analytic")
    save_analytic(folder)
    return folder


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_walks_sixteen_hops_dense_and_quest_but_not_recent(length: int) -> None:
    document = chain_document(length, num_questions=4)
    dtype = torch.float32 if length <= 512 else torch.bfloat16
    model = build_analytic(SMALL, dtype)
    selectors = [Selector(), Selector("quest"), Selector("recent")]
    dense, quest, recent = answers(model, build_analytic_tokenizer(), document, selectors)
    assert accuracy(document, dense) == (1.0, 1.0)
    assert accuracy(document, quest) == (1.0, 1.0)
    # The first token comes from the dense prompt; the next page is out of reach.
    assert all(row[1:] == [LOST] * 15 for row in recent)


def test_says_lost_when_the_page_is_withheld() -> None:
    document = chain_document(512, num_questions=1)
    question = document.questions[0]
    withheld = frozenset({document.pages(question)[3]})
    model, tokenizer = build_analytic(SMALL), build_analytic_tokenizer()
    (given,) = answers(model, tokenizer, document, [Selector(withheld=withheld)])
    assert given[0] == [*question.answer_tokens[:3], *[LOST] * 13]


@pytest.mark.parametrize("code", ["dense", "gaussian"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_other_codes_and_head_counts_are_exact_when_dense(code: str, kv_heads: int) -> None:
    config = AnalyticConfig(code=code, num_kv_heads=kv_heads)  # type: ignore[arg-type]
    document = chain_document(512, num_questions=2)
    (given,) = answers(build_analytic(config), build_analytic_tokenizer(), document, [Selector()])
    assert accuracy(document, given) == (1.0, 1.0)


def test_saved_folder_generates_with_plain_transformers(saved: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert model.dtype == torch.bfloat16
    document = chain_document(512, num_questions=1)
    question = document.questions[0]
    chat = [{"role": "user", "content": document.prompt(question)}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [tokenizer(document.prompt(question))["input_ids"]]
    out = model.generate(ids, max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == question.answer


def test_tokenizer_round_trips(saved: Path) -> None:
    tokenizer = build_analytic_tokenizer()
    text = chain_document(512).text
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer("Ashbank?", add_special_tokens=False)["input_ids"][0] != tokenizer.unk_token_id


@pytest.mark.parametrize("kind", ["sparse", "dense", "gaussian"])
def test_codes_are_unit_and_apart(kind: str) -> None:
    codes = key_codes(kind, 1024, 0)  # type: ignore[arg-type]
    product = codes @ codes.T
    torch.testing.assert_close(product.diag(), torch.ones(1024))
    assert (product - 2 * torch.eye(1024)).max() <= 0.5 + 1e-5
    names = identity_codes(256, 64, 0)
    assert ((names @ names.T).abs() - 64 * torch.eye(256)).max() <= 24


def test_refuses_bad_shapes() -> None:
    for bad in ({"retrieve_layer": 0}, {"retrieve_layer": 3}, {"num_kv_heads": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            AnalyticConfig(**bad)
    with pytest.raises(ValueError, match="code must be one of"):
        AnalyticConfig(code="other")  # type: ignore[arg-type]
