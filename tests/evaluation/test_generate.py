"""Long outputs: what is asked for, how it is judged, and what is told of it."""

import random
from types import SimpleNamespace

import pytest
import torch

from sgl_sparsekv.evaluation.client import Reply
from sgl_sparsekv.evaluation.forced import FORCED, NOTES, ForcedTokens
from sgl_sparsekv.evaluation.settings import Reading
from sgl_sparsekv.evaluation.tasks.generate.judging import Anything, Quotation, ToolCall
from sgl_sparsekv.evaluation.tasks.generate.prompts import ROOM, TASKS, RealPrompts
from sgl_sparsekv.evaluation.tasks.generate.small_models import SmallPrompts
from sgl_sparsekv.evaluation.tasks.generate.task import GenerateTask, Grid
from sgl_sparsekv.evaluation.tasks.generate.wanted import Wanted
from sgl_sparsekv.evaluation.tasks.likeness import alike, edits, prefix, repeated
from sgl_sparsekv.evaluation.tasks.real.document import real_document
from sgl_sparsekv.evaluation.tasks.real.library import functions
from sgl_sparsekv.evaluation.tokens import Tokens

LENGTH, NEW = 4096, 512
FULL, SPARSE = Reading("full", 256), Reading("streaming", 256)


@pytest.fixture(scope="module")
def tokens(prose_model):
    return Tokens(prose_model)


def distance(a, b):
    """Edits by the table of all beginnings, as the textbook has it."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def test_edits_are_those_of_the_whole_table():
    rng = random.Random(0)
    for _ in range(500):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(12))) for _ in range(2))
        assert edits(a, b) == distance(a, b), (a, b)


def test_likeness_counts_characters_and_a_prefix_ends_at_the_first_wrong_one():
    assert alike("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert alike("", "") == prefix("x", "") == prefix("abcd", "abc") == 1
    assert alike("", "abc") == prefix("", "abc") == prefix("xbc", "abc") == 0
    assert prefix("abx", "abcd") == 0.5


def test_a_run_of_four_tokens_is_repeated_if_it_was_there_before():
    assert repeated([1, 2, 3, 4, 5, 6]) == repeated([1, 2]) == 0
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated([7] * 13) == pytest.approx(9 / 10)


@pytest.mark.parametrize("size", [1500, 6000])
def test_a_document_is_no_longer_than_asked_and_its_passages_lie_in_it_once(tokens, size):
    document = real_document(tokens.ids, size, 300, 1)
    assert 0.6 * size < len(tokens.ids(document.text)) <= size
    assert len(tokens.ids(document.goes_on)) >= 300
    assert {bool(passage.function) for passage in document.passages} == {True, False}
    for passage in document.passages:
        assert document.text.count(passage.opening) == 1
        assert passage.opening + passage.rest + "\n\n" in document.text
        assert passage.place == document.text.index(passage.opening) / len(document.text)
    assert real_document(tokens.ids, size, 300, 1) == document
    assert real_document(tokens.ids, size, 300, 2).text != document.text


def test_a_document_longer_than_all_there_is_to_read_is_refused():
    with pytest.raises(ValueError, match="length must be below"):
        real_document(lambda text: [0] * len(text), 10**9, 0, 0)


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_and_its_output_fit_and_what_is_right_is_judged_right(tokens, task):
    made = RealPrompts(tokens, ("", ""), NEW).make(task, LENGTH, 0, 3)
    assert len(made) == (3 if task in ("copy", "call") else 1)
    for wanted in made:
        assert len(tokens.ids(wanted.prompt)) + (wanted.most or NEW) <= LENGTH
        judged = wanted.judge(wanted.expected)
        assert all(value == 1 for value in judged.values())
        assert bool(judged) == bool(wanted.expected) == (task in ("copy", "call"))
        assert not any(wanted.judge("nothing of the kind").get(n) == 1 for n in judged)
    assert [bool(wanted.follow) for wanted in made] == [task != "write"] * len(made)
    if task == "call":
        places = [wanted.place for wanted in made]
        assert places == sorted(places)


def test_prompts_about_one_document_share_it(tokens):
    prompts = RealPrompts(tokens, ("<user>", "<model>"), NEW)
    goes_on, write = (prompts.make(task, LENGTH, 0, 1)[0].prompt for task in ("continue", "write"))
    copy = prompts.make("copy", LENGTH, 0, 1)[0].prompt
    assert write.startswith(goes_on) and copy.startswith(goes_on)
    assert goes_on.startswith("<user>") and write.endswith("<model>") and "<model>" in copy


def test_texts_to_follow_are_each_of_another_document_and_as_long_as_can_be(tokens):
    made = RealPrompts(tokens, ("<user>", "<model>"), 64).texts(2048, 5, 4)
    assert [text.name for text in made] == [
        *("copy 2048 5", "write 2048 6", "continue 2048 7", "copy 2048 8")
    ]
    assert [bool(text.continuation) for text in made] == [True, False, True, True]
    assert all(1000 < len(tokens.ids(text.text)) <= 2048 for text in made)
    assert all(len(tokens.ids(text.continuation)) >= 64 for text in made if text.continuation)
    assert len({text.text[:400] for text in made}) == 4
    with pytest.raises(ValueError, match="samples must be at least 1"):
        RealPrompts(tokens, ("", ""), 64).texts(2048, 5, 0)


def test_a_length_without_room_is_refused(tokens):
    with pytest.raises(ValueError, match=f"above {NEW + ROOM}"):
        RealPrompts(tokens, ("", ""), NEW).make("copy", NEW + ROOM, 0, 1)
    with pytest.raises(ValueError, match="room for 99 tools"):
        RealPrompts(tokens, ("", ""), NEW).make("call", LENGTH, 0, 99)
    with pytest.raises(ValueError, match="room for 99 passages"):
        RealPrompts(tokens, ("", ""), NEW).make("copy", LENGTH, 0, 99)


def test_a_function_of_the_library_has_the_parameters_that_it_has():
    found = {function.name: function for function in functions()}
    assert found["shutil.copyfile"].parameters == ("src", "dst", "follow_symlinks")
    assert found["textwrap.dedent"].purpose.startswith("Remove any common leading whitespace")


START = '{"name": "f", "arguments": {"'


@pytest.mark.parametrize(
    ("said", "valid", "fits"),
    [
        ('a": 1, "b": 2}}', 1, 1),
        ('b": 2, "a": 1}}\n\nThis calls f.', 1, 1),
        ('a": 1}}', 1, 0),
        ('a": 1, "b": "2"}}', 1, 0),
        ('a": 1, "b": true}}', 1, 0),
        ('a": 1, "b": 2, "c": 3}}', 1, 0),
        ('a": 1, "b": 2}, "id": 1}', 0, 0),
        ('a": 1, "b": 2}', 0, 0),
        ("", 0, 0),
    ],
)
def test_a_call_is_valid_as_json_and_fits_its_schema_or_not(said, valid, fits):
    assert ToolCall(START, "f", ("a", "b"))(said) == {"valid": valid, "fits": fits}


def test_a_quotation_is_judged_without_the_white_space_around_it():
    assert Quotation(" a b\n")("a b") == {"alike": 1, "prefix": 1}
    assert Quotation("abcd")("abx") == {"alike": 0.5, "prefix": 0.5}


class Decoder:
    """A server of ten letters; sparsely it thinks otherwise in the last half of what it follows."""

    def __init__(self):
        self.bodies = []

    def generate(self, body):
        self.bodies.append(body)
        sampling = body["sampling_params"]
        params = dict(sampling["custom_params"])
        sparse = params["sparsekv"]["method"] != "full"
        request = SimpleNamespace(
            extend_end=None, origin_input_ids=body["input_ids"], customized_info=None
        )
        params["__req__"] = request
        said = []
        for step in range(sampling["max_new_tokens"]):
            logits = torch.zeros(1, 10)
            logits[0, 3 if sparse and step > sampling["max_new_tokens"] // 2 else step % 7] = 2.0
            if FORCED in params:
                ForcedTokens()(logits, [params])
            said.append(int(logits.argmax()))
        notes = (request.customized_info or {}).get(NOTES, [])
        report = dict.fromkeys(("tokens_attended", "tokens_in_context", "decode_steps"), 1)
        text = "".join(map(str, said))
        return Reply(text, said, len(body["input_ids"]), 0, report, notes)


LETTERS = SimpleNamespace(ids=lambda text: [int(letter) for letter in text])


class Two:
    """An output of one's own, and one that is right or wrong."""

    tasks = ("write", "copy")

    def settings(self):
        return {}

    def make(self, task, length, seed, count):
        if task == "write":
            return [Wanted("01", "", Anything())]
        return [Wanted("01", "0123456012", Quotation("0123456012"), "0123456012", most=10)]


def test_what_is_followed_is_told_by_quarter_and_what_is_said_is_judged():
    grid = Grid(("write", "copy"), (64,), 41, count=1)
    task, server = GenerateTask(LETTERS, Two(), grid), Decoder()
    write, copy = (task.build(part)[0] for part in task.parts())
    assert (write.prompt.number, copy.prompt.number) == (0, 1)
    dense, sparse = (task.ask(write, reading, server) for reading in (FULL, SPARSE))
    assert dense.value == 0 and dense.detail["top-1"] == 1 and dense.detail["tokens"] == 40
    assert dense.detail["repeated"] == pytest.approx(1 - 7 / 38)
    along = sparse.detail["along"]
    assert along["KL"][:2] == [0, 0] and min(along["KL"][2:]) > 0.1
    assert sum(along["KL"]) / 4 == pytest.approx(sparse.value)
    assert along["top-1"][:2] == [1, 1] and max(along["top-1"][2:]) < 0.3
    assert sparse.said.endswith("333")
    assert sparse.detail["repeated"] == repeated(LETTERS.ids(sparse.said))
    right, wrong = (task.ask(copy, reading, server) for reading in (FULL, SPARSE))
    assert right.detail["alike"] == right.detail["prefix"] == 1 and right.expected == (
        copy.wanted.follow,
    )
    assert wrong.detail["prefix"] == 0.6 and 0.6 <= wrong.detail["alike"] < 1


def test_the_package_s_own_models_are_asked_what_they_can_read(chain_model):
    prompts = SmallPrompts(Tokens(chain_model), "chain", 64)
    (goes_on,) = prompts.make("continue", 2048, 0, 1)
    assert len(goes_on.follow.split()) == goes_on.most == 64
    for wanted in prompts.make("copy", 2048, 0, 2):
        assert wanted.judge(wanted.expected) == {"alike": 1, "prefix": 1}
        assert all(word in wanted.prompt for word in wanted.expected.split())
