"""RULER: what each task hides, counted by code that shares nothing with the one that hides it."""

import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.base import Part
from sgl_sparsekv.evaluation.tasks.ruler import TASKS, RulerTask
from sgl_sparsekv.evaluation.tasks.ruler.words import parts_of_speech

WORD = r"[\w' -]+-[\w' -]+"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
NUMBER = r"[1-9]\d{6}"


@pytest.fixture(scope="module")
def word_level():
    """One token for a word, and one before the text."""
    from sgl_sparsekv.models import build_trained_tokenizer

    return counting(build_trained_tokenizer())


@pytest.fixture(scope="module")
def byte_level():
    """Byte-level BPE of 4096 tokens, as of real models but smaller."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    every = [word for words in parts_of_speech().values() for word in words]
    text = [" ".join(f"{rng.randrange(9999)}. {word}" for word in every)] * 3
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return counting(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def counting(tokenizer):
    """As much of `Tokens` as a task needs."""
    return SimpleNamespace(
        tokenizer=tokenizer, ids=lambda text: tokenizer(text, verbose=False).input_ids
    )


def ruler(tokens, names=(), lengths=(4096,), samples=1, **more):
    return RulerTask(Asking(tokens), names, lengths, samples, **more)


def question(tokens, name, length=4096, sample=0, **more):
    (found,) = ruler(tokens, [name], [length], sample + 1, **more).build(Part(name, length, sample))
    return found


def whole(question):
    return question.document + question.question + question.start


@pytest.mark.parametrize("length", [4096, 32768, pytest.param(131_072, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["word_level", "byte_level"])
def test_every_task_fills_its_length_and_leaves_room_for_the_answer(kind, length, request):
    tokens = request.getfixturevalue(kind)
    task = ruler(tokens, lengths=[length])
    assert [part.task for part in task.parts()] == list(TASKS)
    for part in task.parts():
        (asked,) = task.build(part)
        total = len(tokens.ids(whole(asked))) + asked.max_new_tokens
        assert 0.9 * length <= total <= length, part
        assert all(asked.references)
        if not part.task.startswith("qa"):
            assert all(text in asked.document for text in asked.references)


def test_one_more_piece_of_haystack_would_not_fit(word_level):
    for name in ("niah_single_1", "niah_multikey_3", "vt"):
        asked = question(word_level, name, 8192)
        longest = max(len(word_level.ids(line)) for line in asked.document.splitlines())
        total = len(word_level.ids(whole(asked))) + asked.max_new_tokens
        assert 8192 - longest < total <= 8192


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides_and_nothing_else(word_level, name):
    first = question(word_level, name, 2048, 1, seed=5)
    task = ruler(word_level, [name], [4096, 2048], 3, seed=5)
    task.build(Part(name, 4096, 2))
    assert task.build(Part(name, 2048, 1)) == [first]
    assert question(word_level, name, 2048, 1, seed=6).document != first.document
    assert question(word_level, name, 2048, 0, seed=5).document != first.document


@pytest.mark.parametrize("name", TASKS)
def test_too_short_a_length_is_refused(word_level, name):
    with pytest.raises(ValueError, match=r"^length must be at least \d+"):
        question(word_level, name, 128)


def test_a_chat_template_counts_too(word_level):
    plain = ruler(word_level, ["niah_single_1"]).build(Part("niah_single_1", 4096, 0))[0]
    chat = ("word " * 500, " word" * 500)
    task = RulerTask(Asking(word_level, chat=chat), ["niah_single_1"], [4096], 1)
    (asked,) = task.build(Part("niah_single_1", 4096, 0))
    spared = len(word_level.ids(whole(plain))) - len(word_level.ids(whole(asked)))
    assert 900 < spared < 1100


@pytest.mark.parametrize(
    ("name", "key", "value", "hidden", "asked"),
    [
        ("niah_single_1", WORD, NUMBER, 1, 1),
        ("niah_single_2", WORD, NUMBER, 1, 1),
        ("niah_single_3", WORD, UUID, 1, 1),
        ("niah_multikey_1", WORD, NUMBER, 4, 1),
        ("niah_multikey_2", WORD, NUMBER, None, 1),
        ("niah_multikey_3", UUID, UUID, None, 1),
        ("niah_multivalue", WORD, NUMBER, 4, 4),
        ("niah_multiquery", WORD, NUMBER, 4, 4),
    ],
)
def test_needles_are_of_their_kind_and_each_question_has_one_answer(
    word_level, name, key, value, hidden, asked
):
    found = question(word_level, name, 8192)
    needles = re.findall(rf"for ({key}?) is: ({value})\.", found.document)
    keys = Counter(key for key, _ in needles)
    assert len(needles) == hidden if hidden else len(needles) > 100
    assert set(keys.values()) == ({4} if name == "niah_multivalue" else {1})
    assert len({text for _, text in needles}) == len(needles)
    names = [text for text in keys if text in found.question]
    assert all(text in found.start for text in names)
    right = [text for key, text in needles if key in names]
    assert sorted(right) == sorted(found.references)
    assert len(found.references) == asked
    assert (found.place is None) == (asked > 1)
    if found.place is not None:
        before = found.document[: round(found.place * len(found.document))]
        assert found.references[0] not in before
        assert found.references[0] in found.document[len(before) : len(before) + 200]


def test_answers_of_several_queries_stand_in_the_order_of_the_query(word_level):
    found = question(word_level, "niah_multiquery")
    order = [
        found.question.index(re.search(rf"for ({WORD}) is: {text}\.", found.document)[1])
        for text in found.references
    ]
    assert order == sorted(order)
    assert ", and " in found.question


def test_one_chain_of_four_hops_hides_in_the_noise(word_level):
    found = question(word_level, "vt", 8192)
    _, example, _, main = found.document.split("\n\n")
    chain = re.findall(r"^VAR ([A-Z]{5}) = (?:VAR )?(\w+) ?$", main, re.M)
    names = [name for name, _ in chain]
    assert tuple(names) == found.references
    value, *sources = [source for _, source in chain]
    assert sources == names[:-1]
    assert f"value {value} " in found.question and f"value {value}, " in found.start
    assert found.start.endswith("are: ") and " 5 variables are assigned " in found.start
    solved = re.findall(r"^VAR ([A-Z]{3}) = (?:VAR )?(\w+) ?$", example, re.M)
    assert example.endswith("are:  " + " ".join(name for name, _ in solved))
    assert len(solved) == 5
    assert value != solved[0][1]
    assert 400 < len(word_level.ids(example)) < 500


def test_a_tokenizer_of_letters_has_the_smallest_example():
    letters = SimpleNamespace(ids=list)
    found = question(letters, "vt", 4096)
    assert found.document.partition("Answer")[0].count("Here we go.") == 5


@pytest.mark.parametrize(("length", "often", "rare"), [(4096, 30, 3), (2048, 6, 1)])
def test_ten_words_are_common_and_the_list_is_numbered(word_level, length, often, rare):
    found = question(word_level, "cwe", length)
    example, main = found.document.split(found.start)
    shown, answers = numbered(example), numbered(main.splitlines()[0])
    listed = numbered(found.document.splitlines()[-1])
    counts = Counter(listed)
    common = [word for word, count in counts.items() if count == often]
    assert sorted(common) == sorted(found.references)
    assert len(common) == 10
    assert set(counts.values()) == {often, rare}
    shown_often, shown_rare, different = (10, 3, 40) if length >= 4096 else (3, 1, 20)
    assert Counter(Counter(shown).values()) == {shown_often: 10, shown_rare: different - 10}
    assert {word for word, count in Counter(shown).items() if count == shown_often} == {*answers}


def numbered(text):
    """Words of `1. word 2. word`, whose numbers must count from 1."""
    found = re.findall(r"(\d+)\. (\D+?)(?= \d+\. |\n|$)", text)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [word for _, word in found]


def test_counts_of_coded_words_fall_with_the_square_of_their_rank(word_level):
    found = question(word_level, "fwe", 32768)
    words = re.findall(
        r"(?<= )(?:[a-z]{6}|\.\.\.)(?= |$)", found.document.partition("coded words.")[2]
    )
    (dots, most), *ranked = Counter(words).most_common()
    assert dots == "..."
    assert tuple(word for word, _ in ranked[:3]) == found.references
    assert all(len(word) == 6 for word, _ in ranked)
    for rank, (_, count) in enumerate(ranked[:50], 2):
        assert abs(count - most / rank**2) <= 1
    assert len({*words}) <= (32768 - 50) // 50


@pytest.mark.parametrize(("name", "gold"), [("qa_1", 1), ("qa_2", 2)])
def test_passages_are_numbered_and_hold_the_answer(word_level, name, gold):
    found = question(word_level, name, 8192, 2)
    numbers = [int(text) for text in re.findall(r"^Document (\d+):$", found.document, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert found.start == " Answer:"
    place = re.search(r" of (\w+) ", found.question.replace("?", " "))[1]
    telling = [line for line in found.document.splitlines() if f" of {place} " in line]
    assert len(telling) >= 1
    assert any(text in found.document for text in found.references)


def test_the_parts_of_a_prompt_join_to_the_published_template(word_level):
    """The template is found again from the harness's files by plain search, not by its parser."""
    from importlib.util import find_spec
    from pathlib import Path

    folder = Path(find_spec("lm_eval").origin).parent / "tasks" / "ruler"
    files = {
        "niah": "niah_utils",
        "vt": "vt_utils",
        "cwe": "cwe_utils",
        "fwe": "fwe_utils",
        "qa": "qa_utils",
    }
    for name in TASKS:
        source = (folder / f"{files[name.split('_')[0]]}.py").read_text().replace("\\n", "\n")
        template = next(t for t in re.findall(r'"""(.+?)"""', source, re.S) if "{context}" in t)
        found = question(word_level, name)
        if name.startswith("niah") and len(found.references) == 1:
            template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
        pattern = re.escape(template).replace(r"\{context\}", "(?s:.+)")
        pattern = re.sub(r"\\{\w+\\}", "[^\n]+?", pattern)
        assert re.search(f"{pattern}$", found.document + found.question), name


@pytest.mark.parametrize(
    ("metric", "said", "references", "value"),
    [
        ("string_match_all", "1234567.", ["1234567"], 1),
        ("string_match_all", " The ANSWER is abc", ["ABC"], 1),
        ("string_match_all", "a, b", ["a", "b", "x", "y"], 0.5),
        ("string_match_all", "b\x00a", ["b\na"], 1),
        ("string_match_all", "", ["a"], 0),
        ("string_match_all", "xaby", ["ab"], 1),
        ("string_match_part", "It was Rollo", ["Rolf", "rollo"], 1),
        ("string_match_part", "nobody", ["Rolf", "Rollo"], 0),
    ],
)
def test_answers_are_judged_as_published(word_level, metric, said, references, value):
    asked = SimpleNamespace(metric=metric, references=references)
    assert ruler(word_level).judge(asked, said) == value


def test_unknown_tasks_and_no_samples_are_refused(word_level):
    with pytest.raises(ValueError, match=r"task must be one of niah_single_1, .* got 'vt2'"):
        ruler(word_level, ["vt2"])
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        ruler(word_level, samples=0)
