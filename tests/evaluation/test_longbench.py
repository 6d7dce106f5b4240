"""LongBench: values worked out by hand, prompts whole, files checked."""

import json
from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.base import Part
from sgl_sparsekv.evaluation.tasks.longbench import LongBenchTask, write_synthetic
from sgl_sparsekv.evaluation.tasks.longbench.datasets import ALL, METRIC, PUBLISHED, SYNTHETIC
from sgl_sparsekv.evaluation.tasks.longbench.prompts import published

PLAIN = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


class Letters:
    """A tokenizer of one token per letter and one before the text."""

    def __init__(self):
        self.tokenizer = SimpleNamespace(decode=self.decode)

    def ids(self, text):
        return [0, *map(ord, text)]

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(i) for i in ids if i)


def record(**change):
    return {
        "input": "Who?",
        "context": "Once upon a time.",
        "answers": ["Ada"],
        "length": 4,
        "dataset": "any",
        "language": "en",
        "all_classes": ["number", "location", "other"],
        "_id": "0",
    } | change


@pytest.fixture
def bench(tmp_path):
    """A task over a folder with the given lines per set."""

    def make(sets, **settings):
        for name, records in sets.items():
            lines = [json.dumps(entry, ensure_ascii=False) for entry in records]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return LongBenchTask(Asking(Letters()), tmp_path, **settings)

    return make


def first(task, name):
    (question,) = task.build(Part(name, 0, 0))
    return question


@pytest.mark.parametrize(
    ("name", "answers", "said", "value"),
    [
        # Two words of which one is right, and that is one of three: 2 (1/2 1/3) / (1/2 + 1/3).
        ("hotpotqa", ["A red dog jumps"], "the red fox!", 2 * (1 / 6) / (5 / 6)),
        ("hotpotqa", ["no", "Red Fox", "red"], "the red fox!", 1),
        ("qasper", ["Ada"], "Ada\nQuestion: more words", 2 * (1 / 4) / (1 + 1 / 4)),
        # The same, but only the first line counts.
        ("triviaqa", ["Ada"], "\n\nAda\nQuestion: more words", 1),
        # Two words, one of them right, and it is all of the answer: 2 (1/2 1) / (1/2 + 1).
        ("multifieldqa_zh", ["苹果"], "苹果 香蕉。", 2 * (1 / 2) / (3 / 2)),
        # The longest common run is "a c d": 3 of 4 words said, 3 of 5 wanted.
        ("gov_report", ["a c d e f"], "a b c d", 2 * (3 / 4 * 3 / 5) / (3 / 4 + 3 / 5)),
        ("samsum", ["a c d e f"], "a b c d\nDialogue: a c d e f", 2 / 3),
        ("gov_report", ["a"], "", 0),
        # Words again: one of two said, and the only one wanted.
        ("dureader", ["苹果"], "苹果香蕉", 2 * (1 / 2) / (3 / 2)),
        ("trec", ["number"], " number\nlocation", 1),
        ("trec", ["number"], "number or location", 1 / 2),
        ("trec", ["number"], "other", 0),
        ("passage_count", ["5"], "There are 5, not 6, so 5.", 2 / 3),
        ("passage_count", ["5"], "many", 0),
        ("passage_retrieval_en", ["Paragraph 3"], "Paragraph 3 or 4", 1 / 2),
        ("passage_retrieval_en", ["Paragraph 3"], "Paragraph 13", 0),
        ("passage_retrieval_zh", ["段落5"], "段落5", 1),
        # Four of five letters in their place, of both: 2 4 / (5 + 5).
        ("lcc", ["x = 2"], "\n\nx = 1\ny = 3", 8 / 10),
        ("lcc", ["x = 2"], "# two\n```\nx = 2", 1),
        # LongBench passes over comments and not over blank lines.
        ("repobench-p", ["x = 2"], "# two\n\nx = 2", 0),
    ],
)
def test_answers_are_worth_what_arithmetic_says(bench, name, answers, said, value):
    task = bench({name: [record(answers=answers)]})
    question = first(task, name)
    assert question.references == tuple(answers)
    assert task.judge(question, said) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_set_has_its_published_prompt_with_both_fields_filled(bench, name):
    entry = record(input="What about {context} and {input}?", context="<<A {input} {b}>>")
    task = bench({name: [entry]})
    question = first(task, name)
    assert question.document.endswith(entry["context"])
    asked = entry["input"] in question.question
    assert asked or name in ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
    assert question.chat == (name not in PLAIN)
    assert 32 <= question.max_new_tokens <= 512
    assert question.start == "" and question.stop == ()
    template = published()[name].template
    filled = template.replace("{input}", "\0").replace("{context}", entry["context"])
    assert question.document + question.question == filled.replace("\0", entry["input"])


def test_prompts_end_in_the_white_space_that_longbench_has():
    prompts = {name: prompt.template for name, prompt in published().items()}
    assert all(prompts[name].endswith("is: ") for name in ("passage_count", "passage_retrieval_en"))
    assert all(prompts[name].endswith("code:\n") for name in ("lcc", "repobench-p"))
    assert all(prompts[name].endswith("}\n\n{input}") for name in ("triviaqa", "samsum"))
    assert prompts["trec"].endswith("}\n{input}")


def test_longbench_e_is_counted_by_length(bench):
    lengths = [10, 3999, 4000, 7999, 8000, 30000]
    task = bench({"qasper_e": [record(length=n, input=f"Question {n}?") for n in lengths]})
    rows = [(part.task, part.sample, part.length) for part in task.parts()]
    assert rows == [(f"qasper_e {row}", i, 0) for row in ("0-4k", "4-8k", "8k+") for i in (0, 1)]
    asked = [task.build(part)[0].question for part in task.parts()]
    assert all(f"Question {n}?" in text for n, text in zip(lengths, asked, strict=True))
    assert task.settings()["questions"] == {row: 2 for row, _, _ in rows}


def test_samples_are_the_first_of_each_row(bench):
    sets = {"qasper_e": [record(length=n) for n in (1, 2, 9000)], "lcc": [record()] * 5}
    task = bench(sets, samples=1)
    assert [part.task for part in task.parts()] == ["lcc", "qasper_e 0-4k", "qasper_e 8k+"]


def test_a_long_prompt_keeps_both_ends(bench):
    context = "".join(chr(200 + i) for i in range(500))
    sets = {"hotpotqa": [record(context=context)]}
    short, long = (first(bench(sets, max_length=n), "hotpotqa") for n in (700, 5000))
    assert long.document.endswith(context)
    whole = long.document + long.question
    # One token before the text and 349 letters of it, and the last 350 letters.
    assert short.document + short.question == whole[:349] + whole[-350:]
    assert short.question == long.question


def test_a_question_that_is_cut_is_part_of_the_document(bench):
    task = bench({"hotpotqa": [record(context="c" * 900, input="q" * 400)]}, max_length=600)
    question = first(task, "hotpotqa")
    assert question.question == ""
    assert len(question.document) == 299 + 300


def test_a_prompt_of_just_the_length_is_whole(bench):
    sets = {"lcc": [record(context="c" * 100)]}
    question = first(bench(sets), "lcc")
    tokens = len(question.document + question.question) + 1
    assert first(bench(sets, max_length=tokens), "lcc") == question
    assert first(bench(sets, max_length=tokens - 1), "lcc") != question


def test_the_longest_prompt_and_answer_are_foreseen(bench):
    task = bench({"gov_report": [record(context="c" * 900)]}, max_length=600)
    question = first(task, "gov_report")
    used = len(Letters().ids(question.document + question.question)) + question.max_new_tokens
    assert used <= task.longest <= 600 + 512 + 50


def test_own_prompts_win(bench, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "dataset2prompt.json").write_text(json.dumps({"lcc": "{context} // {input}"}))
    sets = {"lcc": [record()], "qasper": [record()]}
    theirs, ours = bench(sets), bench(sets, prompts=own / "dataset2prompt.json")
    assert first(ours, "lcc").question == " // Who?"
    assert first(ours, "lcc").max_new_tokens == 64
    assert first(ours, "qasper") == first(theirs, "qasper")
    assert ours.settings()["prompts"] != theirs.settings()["prompts"]
    (own / "dataset2maxlen.json").write_text(json.dumps({"lcc": 7}))
    assert first(bench(sets, prompts=own / "dataset2prompt.json"), "lcc").max_new_tokens == 7


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", '{"lcc": 3}', '{"lcc": "{input}"}', '{"lcc": "{context} {other}"}']
)
def test_wrong_prompts_are_one_sentence(content, bench, tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^prompts? must ") as error:
        bench({"lcc": [record()]}, prompts=path)
    assert "\n" not in str(error.value)


def test_a_set_without_prompt_or_answer_length_is_one_sentence(bench, tmp_path):
    with pytest.raises(ValueError, match="prompts must have one for 'facts', got none"):
        bench({SYNTHETIC: [record()]})
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({SYNTHETIC: "{context} {input}"}))
    with pytest.raises(ValueError, match=r"dataset2maxlen\.json' must have .* 'facts', got none"):
        bench({SYNTHETIC: [record()]}, prompts=path)


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "3",
        json.dumps({"input": "a", "context": "b"}),
        json.dumps(record(answers="Ada")),
        json.dumps(record(answers=[])),
        json.dumps(record(context=None)),
        json.dumps(record(length="long")),
        json.dumps(record(all_classes=None)),
    ],
)
def test_a_wrong_line_is_named(line, tmp_path):
    (tmp_path / "trec.jsonl").write_text(f"{json.dumps(record())}\n\n{line}\n")
    with pytest.raises(
        ValueError, match=r"LongBench's form, got .*trec\.jsonl', line 3: "
    ) as error:
        LongBenchTask(Asking(Letters()), tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_one_sentence(bench, tmp_path):
    with pytest.raises(ValueError, match="data must be a folder of LongBench's"):
        bench({})
    task = bench({"lcc": [record()], "vcsum": [record(all_classes=None)]})
    assert [part.task for part in task.parts()] == ["vcsum", "lcc"]
    with pytest.raises(ValueError, match=r"data must have the file qasper\.jsonl, got "):
        bench({}, names=["qasper"])
    with pytest.raises(ValueError, match=r"set must be one of narrativeqa, .* got 'qasper2'"):
        bench({}, names=["qasper2"])
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        bench({}, samples=0)
    with pytest.raises(ValueError, match="max_length must be at least 2, got 1"):
        bench({}, max_length=1)
    (tmp_path / "trec.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="data must hold questions, got an empty"):
        bench({}, names=["trec"])


def test_the_tables_of_sets_agree():
    assert len(PUBLISHED) == 21
    assert len(ALL) == 21 + 1 + 13
    assert set(published()) == set(PUBLISHED) == set(METRIC) - {SYNTHETIC}


def test_the_synthetic_set_is_of_the_same_form_and_asks_facts_of_its_documents(tmp_path):
    from sgl_sparsekv.models import build_trained_tokenizer

    tokenizer = build_trained_tokenizer()
    tokens = SimpleNamespace(tokenizer=tokenizer, ids=lambda text: tokenizer(text).input_ids)
    write_synthetic(tmp_path, (1024, 2048), 4, seed=3)
    lines = (tmp_path / "facts.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == set(record()) for line in lines)
    task = LongBenchTask(Asking(tokens), tmp_path, prompts=tmp_path / "dataset2prompt.json")
    assert len(task.parts()) == len(lines) == 8
    for part, length in zip(task.parts(), [1024] * 4 + [2048] * 4, strict=True):
        (question,) = task.build(part)
        name = question.question.split()[-1]
        (answer,) = question.references
        assert f" {name} {answer} ." in question.document
        assert len(tokens.ids(answer)) - 1 == question.max_new_tokens
        used = len(tokens.ids(question.document + question.question)) + question.max_new_tokens
        assert length - 32 < used <= length
        assert task.judge(question, f" {answer}") == 1
        assert task.judge(question, " nothing") == 0
