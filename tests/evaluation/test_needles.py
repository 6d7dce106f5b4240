"""Documents: exact lengths, needles at the depths asked for, one answer each."""

from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.tasks.asking import Asking, Question
from sgl_sparsekv.evaluation.tasks.needle.prose import FACT, ProseBuilder
from sgl_sparsekv.evaluation.tasks.needle.small_models import (
    WORD_ROOM,
    chain_haystack,
    facts_haystack,
)
from sgl_sparsekv.evaluation.tasks.needle.task import EXACT, OCCURS, Grid, NeedleTask


def ids(text):
    """A tokenizer of three characters per token, and one token before the text."""
    return [0, *text.encode()[::3]]


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_every_row_has_a_needle_at_its_depth(build):
    haystack = build(4096, 6, 1, 3)
    assert len(haystack.needles) == 6
    for row, needle in enumerate(haystack.needles):
        assert row / 6 <= needle.place < (row + 1) / 6


def judge(metric, references, said):
    task = NeedleTask(Asking(SimpleNamespace(ids=ids)), Grid("prose", (100,), 1))
    return task.judge(Question("", "", references, metric, 9), said)


def test_an_answer_is_judged_by_its_parts():
    assert judge(EXACT, ("a b c",), " a b c\n") == 1
    assert judge(EXACT, ("a b c",), "a b") == judge(EXACT, ("a b c",), "a b c d") == 0
    assert judge(EXACT, ("a", "b"), "a x") == 0.5 and judge(EXACT, ("a", "b"), "b a") == 0
    assert judge(OCCURS, ("123", "456"), "They are 123 and 999.") == 0.5
    assert judge(OCCURS, ("123",), "") == 0


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_the_seed_decides_and_nothing_else(build):
    assert build(2048, 3, 1, 5) == build(2048, 3, 1, 5)
    assert build(2048, 3, 1, 5).text != build(2048, 3, 1, 6).text


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_it_is_known_where_what_must_be_found_stands(build):
    """All of an answer's parts are in there, but for what prefill finds of a chain."""
    haystack = build(4096, 4, 1, 6)
    for needle in haystack.needles:
        found = " ".join(haystack.text[first:end] for first, end in needle.spans)
        assert needle.parts[-1] in found and len(found) < 120
        assert abs(needle.spans[0][0] / len(haystack.text) - needle.place) < 0.02


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack])
def test_question_and_answer_fit_beside_a_document_of_words(build):
    haystack = build(1024, 4, 1, 0)
    assert len(haystack.text.split()) + 1 == 1024 - WORD_ROOM
    for needle in haystack.needles:
        assert len(needle.question.split()) + needle.tokens <= WORD_ROOM


@pytest.mark.parametrize("length", [1000, 2048, 5000])
def test_prose_with_question_and_answer_is_as_long_as_asked(length):
    haystack = ProseBuilder(ids)(length, 4, 1, 1)
    for needle in haystack.needles:
        total = len(ids(haystack.text + needle.question)) + needle.tokens
        assert length - 60 < total <= length


def test_prose_hides_each_number_once():
    haystack = ProseBuilder(ids)(3000, 5, 1, 2)
    for needle in haystack.needles:
        place = needle.question.rpartition(" of ")[2].removesuffix(" is")
        (number,) = needle.parts
        assert haystack.text.count(FACT.format(place=place, number=number)) == 1
        assert haystack.text.count(number) == 1


@pytest.mark.parametrize("build", [chain_haystack, facts_haystack, ProseBuilder(ids)])
def test_a_document_too_short_for_its_needles_is_refused(build):
    with pytest.raises(ValueError, match="must"):
        build(100, 5, 1, 0)


def test_the_second_sign_post_is_the_one_at_depth():
    haystack = chain_haystack(2048, 8, 1, 0)
    words = haystack.text.split()
    for needle in haystack.needles:
        first, second = needle.parts
        assert words[words.index(f"{first}:") + 1] == second
        assert (words.index(f"{first}:") + 2) / (2048 - WORD_ROOM) == pytest.approx(needle.place)


def test_an_answer_of_several_needles_names_places_all_over_the_document():
    haystack = ProseBuilder(ids)(6000, 4, 3, 0)
    for row, needle in enumerate(haystack.needles):
        assert len(set(needle.parts)) == 3 and needle.question.rstrip().endswith(" are")
        places = [haystack.text.index(f" is {part}.") / len(haystack.text) for part in needle.parts]
        assert int(places[0] * 4) == row and len({int(place * 4) for place in places}) == 3
    walk = chain_haystack(2048, 2, 4, 0).needles[0]
    assert len(walk.parts) == walk.tokens == 5
    with pytest.raises(ValueError, match="needles must be 1"):
        facts_haystack(4096, 2, 2, 0)
