"""Documents: exact lengths, needles at the depths asked for, one answer each."""

import pytest

from sgl_sparsekv.evaluation.needles import WORD_ROOM, chain_haystack, facts_haystack
from sgl_sparsekv.evaluation.prose import FACT, ProseBuilder


def ids(text):
    """A tokenizer of three characters per token, and one token before the text."""
    return [0, *text.encode()[::3]]


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_every_row_has_a_needle_at_its_depth(build):
    haystack = build(4096, 6, 3)
    assert [needle.depth for needle in haystack.needles] == list(range(6))
    for needle in haystack.needles:
        assert needle.depth / 6 <= needle.place < (needle.depth + 1) / 6
        assert needle.found_in(f" {needle.answer} ")
        assert not needle.found_in("")


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_the_seed_decides_and_nothing_else(build):
    assert build(2048, 3, 5) == build(2048, 3, 5)
    assert build(2048, 3, 5).text != build(2048, 3, 6).text


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack])
def test_question_and_answer_fit_beside_a_document_of_words(build):
    haystack = build(1024, 4, 0)
    assert len(haystack.text.split()) + 1 == 1024 - WORD_ROOM
    for needle in haystack.needles:
        assert len(needle.question.split()) + needle.tokens <= WORD_ROOM


@pytest.mark.parametrize("length", [1000, 2048, 5000])
def test_prose_with_question_and_answer_is_as_long_as_asked(length):
    haystack = ProseBuilder(ids)(length, 4, 1)
    for needle in haystack.needles:
        total = len(ids(haystack.text + needle.question)) + needle.tokens
        assert length - 60 < total <= length


def test_prose_hides_each_number_once():
    haystack = ProseBuilder(ids)(3000, 5, 2)
    for needle in haystack.needles:
        place = needle.question.rpartition(" of ")[2].removesuffix(" is")
        assert haystack.text.count(FACT.format(place=place, number=needle.answer)) == 1
        assert haystack.text.count(needle.answer) == 1
        assert needle.found_in(f"{needle.answer}. The old farmer")
        assert not needle.found_in(needle.answer[:-1])


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_a_document_too_short_for_its_needles_is_refused(build):
    with pytest.raises(ValueError, match="must"):
        build(100, 5, 0)


def test_the_second_sign_post_is_the_one_at_depth():
    haystack = chain_haystack(2048, 8, 0)
    words = haystack.text.split()
    for needle in haystack.needles:
        first, second = needle.answer.split()
        assert words[words.index(f"{first}:") + 1] == second
        assert (words.index(f"{first}:") + 2) / (2048 - WORD_ROOM) == pytest.approx(needle.place)
