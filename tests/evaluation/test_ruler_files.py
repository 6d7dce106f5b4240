"""RULER's inputs: essays, SQuAD, HotpotQA and the wording, each missing, wrong, or as published."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.base import Part
from sgl_sparsekv.evaluation.tasks.ruler import RulerTask, wording
from sgl_sparsekv.evaluation.tasks.ruler.fitting import largest

TOKENS = SimpleNamespace(ids=lambda text: text.split())
SQUAD = {
    "data": [
        {
            "title": article,
            "paragraphs": [
                {
                    "context": f"The {article} of passage {i} is {article}{i} in {{all}} history.",
                    "qas": [
                        {
                            "question": f"What is the {article} of passage {i}?",
                            "answers": [{"text": f"{article}{i}"}, {"text": f"{article}{i}"}],
                            "is_impossible": i == 1,
                        }
                    ],
                }
                for i in range(3)
            ],
        }
        for article in ("color", "shape")
    ]
}
HOTPOTQA = [
    {
        "question": f"Where is the thing {i}?",
        "answer": f"Town{i}",
        "context": [[f"Title{i}-{k}", [f"Sentence {k}", f" of Town{i}."]] for k in range(10)],
    }
    for i in range(3)
]


def ruler(names, length=4096, samples=1, **files):
    task = RulerTask(Asking(TOKENS), names, [length], samples, **files)
    return task, lambda sample: task.build(Part(names[0], length, sample))[0]


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_squad_asks_what_has_an_answer_beside_passages_of_its_article_first(file):
    task, ask = ruler(["qa_1"], 120, 4, squad=file("dev.json", SQUAD))
    assert task.settings()["qa_1"].startswith("dev.json, sha256 ")
    assert [ask(i).references for i in range(4)] == [
        ("color0",),
        ("color2",),
        ("shape0",),
        ("shape2",),
    ]
    for i, article in ((0, "color"), (3, "shape")):
        found = ask(i)
        assert found.question.endswith(
            f"Question: What is the {article} of passage {found.references[0][-1]}?"
        )
        assert f"{found.references[0]} in {{all}} history." in found.document
        kept = [line for line in found.document.splitlines() if " of passage " in line]
        assert 1 < len(kept) < 6
        assert sum(article in line for line in kept) == min(3, len(kept))
        assert found.document.count("Document ") == len(kept)


def test_a_document_longer_than_the_set_repeats_it(file):
    _, ask = ruler(["qa_1"], 600, 1, squad=file("dev.json", SQUAD))
    assert ask(0).document.count("color0 in {all}") > 1
    assert len(TOKENS.ids(ask(0).document)) > 500


def test_hotpotqa_keeps_all_ten_passages_of_a_question(file):
    task, ask = ruler(["qa_2"], 200, 3, hotpotqa=file("hotpot.json", HOTPOTQA))
    assert task.settings()["qa_2"].startswith("hotpot.json, sha256 ")
    for i in range(3):
        assert all(f"Title{i}-{k}\nSentence {k} of Town{i}." in ask(i).document for k in range(10))
        assert ask(i).references == (f"Town{i}",)
    with pytest.raises(ValueError, match="length must be at least"):
        ruler(["qa_2"], 100, 1, hotpotqa=file("hotpot.json", HOTPOTQA))[1](0)


def test_more_samples_than_questions_are_refused(file):
    _, ask = ruler(["qa_2"], 400, 4, hotpotqa=file("hotpot.json", HOTPOTQA))
    with pytest.raises(ValueError, match="samples must be at most 3 for qa_2"):
        ask(3)


@pytest.mark.parametrize("name", ["essays.txt", "essays.json"])
def test_essays_are_the_users_words_cut_between_sentences(name, file):
    essays = " ".join(f"Sentence {i}\nis so.  And?" for i in range(300))
    path = file(name, {"text": essays} if name.endswith("json") else essays)
    task, ask = ruler(["niah_multikey_1"], 1000, haystack=path)
    assert task.settings()["haystack"].startswith(f"{name}, sha256 ")
    text = ask(0).document
    for i in range(100):
        assert f"Sentence {i} is so." in text
    assert text.count("One of the special magic numbers for ") == 4
    for place in text.split("One of the special")[:-1]:
        assert place.rstrip()[-1] in ".?"


def test_short_essays_repeat(file):
    _, ask = ruler(["niah_single_2"], 1000, haystack=file("short.txt", "Only this. And that."))
    assert ask(0).document.count("Only this.") > 100


def test_without_files_the_settings_say_so():
    found = ruler(["qa_1"])[0].settings()
    assert "not the essays" in found["haystack"]
    assert "not SQuAD" in found["qa_1"]
    assert "not HotpotQA" in found["qa_2"]
    json.dumps(found)


@pytest.mark.parametrize("option", ["haystack", "squad", "hotpotqa"])
def test_a_missing_file_is_one_sentence(option, tmp_path):
    with pytest.raises(ValueError, match=rf"^{option} must be a .*nowhere.*No such file") as error:
        ruler(["vt"], **{option: tmp_path / "nowhere.json"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("haystack", {"words": "a"}),
        ("haystack", {"text": " "}),
        ("haystack", "no JSON"),
        ("squad", "no JSON"),
        ("squad", HOTPOTQA),
        ("squad", {"data": []}),
        ("squad", {"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b"}]}]}]}),
        ("hotpotqa", SQUAD),
        ("hotpotqa", []),
        ("hotpotqa", [{"question": "a", "answer": 3, "context": [["a", ["b"]]]}]),
    ],
)
def test_a_wrong_file_is_one_sentence(option, content, file):
    with pytest.raises(ValueError, match=rf"^{option} must .*wrong\.json") as error:
        ruler(["vt"], **{option: file("wrong.json", content)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["missing", "other words", "other names"])
def test_another_harness_is_noticed(change, monkeypatch, tmp_path):
    from importlib.util import find_spec
    from pathlib import Path

    here = Path(find_spec("lm_eval").origin).parent / "tasks" / "ruler"
    folder = tmp_path / "tasks" / "ruler"
    folder.mkdir(parents=True)
    for path in here.glob("*.py"):
        text = path.read_text()
        text = text.replace("magic", "tragic") if change == "other words" else text
        text = text.replace("TEMPLATE", "PROMPT") if change == "other names" else text
        (folder / path.name).write_text(text)
    found = None if change == "missing" else SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(wording, "find_spec", lambda name: found)
    with pytest.raises(ValueError, match=r"^ruler needs lm_eval 0\.4\.13: pip install"):
        wording.wording.__wrapped__()


def test_documents_are_the_same_in_every_process():
    code = (
        "import hashlib; from types import SimpleNamespace as N;"
        "from sgl_sparsekv.evaluation.tasks.asking import Asking;"
        "from sgl_sparsekv.evaluation.tasks.ruler import RulerTask;"
        "task = RulerTask(Asking(N(ids=str.split)), (), [3000], 1);"
        "found = [task.build(part) for part in task.parts()];"
        "print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


@pytest.mark.parametrize("room", [10, 57, 1000, 131072, 2**20])
def test_the_largest_that_fits_is_found_with_few_measurements(room):
    asked = []

    def size(units):
        asked.append(units)
        return 7 + units * 5 + sum(len(str(i)) for i in range(0, units, 97))

    units = largest(size, room, 0, 32)
    assert size(units) <= room < size(units + 1)
    assert len(asked) - 2 <= 12
    assert largest(size, 6, 0, 32) is None
