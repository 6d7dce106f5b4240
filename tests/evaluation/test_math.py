"""Problems in the form of GSM8K and of AIME: read, shown, asked, and judged by the last number."""

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.client import Reply
from sgl_sparsekv.evaluation.settings import Reading
from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.math.problems import last_number, read_problems, written
from sgl_sparsekv.evaluation.tasks.math.task import ASK, MathTask

GSM8K = [
    {
        "question": "Ann has 3 bags of 4 nuts. How many?",
        "answer": "3*4=<<3*4=12>>12 nuts.\n#### 12",
    },
    {
        "question": "A car costs $1,200 and half of it is paid. What is left?",
        "answer": "#### 1,200",
    },
    {"question": "What is a half of 1?", "answer": "1/2 = 0.5\n#### .50"},
]
AIME = [
    {"problem": "Find the remainder.", "answer": "033"},
    {"ID": "2024-I-1", "Problem": "Find it.", "Solution": "It is 204.", "Answer": 204},
]
TOKENS = SimpleNamespace(ids=lambda text: [ord(letter) for letter in text])


@pytest.fixture
def written_file(tmp_path):
    """Write objects as lines."""

    def write(lines):
        path = tmp_path / "problems.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n\n" for line in lines))
        return path

    return write


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("so 3 and then 12.", 12),
        ("it costs $1,234,567.50 in all", Fraction("1234567.5")),
        ("#### 18\n\nProblem 19", 18),
        ("first #### 3, no: #### -4 (not 7)", -4),
        ("10,20", 20),
        (r"\boxed{073}", 73),
        ("#### none, 5 it was", 5),
        ("no idea", None),
    ],
)
def test_the_last_number_is_found_or_the_marked_one(said, number):
    assert last_number(said) == number


def test_numbers_are_written_as_they_are_read():
    assert [written(Fraction(n)) for n in ("12", "0.5", "-3")] == ["12", "0.5", "-3"]


def test_both_forms_are_read(written_file):
    first, second, third = read_problems(written_file(GSM8K))
    assert (first.worked, first.number) == ("3*4=12 nuts.", 12)
    assert (second.worked, second.number) == ("", 1200) and third.number == 0.5
    zeros, cased = read_problems(written_file(AIME))
    assert (zeros.text, zeros.worked, zeros.number) == ("Find the remainder.", "", 33)
    assert (cased.text, cased.worked, cased.number) == ("Find it.", "It is 204.", 204)


@pytest.mark.parametrize(
    "line", [[], {"question": "a"}, {"question": "a", "answer": "b"}, {"problem": 1, "answer": "2"}]
)
def test_a_line_of_another_form_is_refused_with_its_number(written_file, line):
    with pytest.raises(ValueError, match=r"problems\.jsonl must have .* in line 3"):
        read_problems(written_file([GSM8K[0], line]))


def test_solved_problems_are_shown_first_and_the_rest_are_asked(written_file):
    task = MathTask(Asking(TOKENS), written_file(GSM8K[:2] + AIME), 1, 2, 64)
    assert [(part.task, part.sample) for part in task.parts()] == [("problems", 0), ("problems", 1)]
    (question,) = task.build(task.parts()[0])
    shown = "Problem: Ann has 3 bags of 4 nuts. How many?\n\nSolution: 3*4=12 nuts.\n#### 12\n\n"
    assert question.document == ASK + shown and question.references == ("1200",)
    assert question.question.startswith("Problem: A car costs") and question.stop == (
        "\nProblem: ",
    )
    longest = max(len(q.document + q.question) for p in task.parts() for q in task.build(p))
    assert task.longest == longest + 64 and task.settings()["shots"] == 1


@pytest.mark.parametrize(("said", "right"), [("600, so #### 1200.00", 1), ("half is 600", 0)])
def test_an_answer_is_right_by_its_last_number(written_file, said, right):
    task = MathTask(Asking(TOKENS), written_file(GSM8K), 1, 1, 64)
    (question,) = task.build(task.parts()[0])
    server = SimpleNamespace(generate=lambda body: Reply(said, [1], 9, 0, {}, []))
    outcome = task.ask(question, Reading("full", 256), server)
    assert outcome.value == right and outcome.said == said


@pytest.mark.parametrize(
    ("shots", "samples", "tokens"), [(3, None, 9), (-1, None, 9), (0, 0, 9), (0, None, 0)]
)
def test_what_cannot_be_asked_is_refused(written_file, shots, samples, tokens):
    with pytest.raises(ValueError, match="must be"):
        MathTask(Asking(TOKENS), written_file(GSM8K), shots, samples, tokens)
