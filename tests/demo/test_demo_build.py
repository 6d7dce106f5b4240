import json

import pytest

from sgl_sparsekv.demo.build import HOPS, build_scenario


@pytest.fixture
def folder(tmp_path):
    """A model's folder, as far as the questions depend on it."""

    def write(*words):
        vocabulary = {word: i for i, word in enumerate(words)}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        return str(tmp_path)

    return write


def test_a_model_that_says_lost_walks_sign_posts(folder, tmp_path):
    scenario = build_scenario(folder("<s>", "<lost>"), 2048, 4, 0, tmp_path)
    assert scenario.document_tokens == 2048
    assert len(scenario.questions) == 4
    tokens = ["<s>", *scenario.document.split()]
    assert len(tokens) == 2048
    for question in scenario.questions:
        assert question.prompt.startswith(" ")
        assert len(question.answer) == len(question.needles) == HOPS
        assert [tokens[place] for place in question.needles] == list(question.answer)


def test_another_model_completes_hidden_sentences(folder, tmp_path):
    scenario = build_scenario(folder("<s>"), 4096, 4, 0, tmp_path)
    for question in scenario.questions:
        assert len(question.answer) == len(question.needles) > 1


def test_the_seed_decides_the_document(folder, tmp_path):
    path = folder("<lost>")
    first, again, other = (build_scenario(path, 2048, 4, seed, tmp_path) for seed in (0, 0, 1))
    assert first == again
    assert first.document != other.document


def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="model must be analytic, trained or a folder"):
        build_scenario("gpt", 2048, 4, 0, tmp_path)
