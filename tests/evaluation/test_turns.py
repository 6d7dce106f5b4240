"""Conversations over one growing prefix: what each turn's prompt is, and what is told of it."""

from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.client import Reply
from sgl_sparsekv.evaluation.server import POOL_SPARE, server_spec
from sgl_sparsekv.evaluation.settings import Reading, Settings
from sgl_sparsekv.evaluation.tasks.likeness import alike
from sgl_sparsekv.evaluation.tasks.turns.conversation import (
    PLAIN,
    Conversation,
    Turn,
    real_conversation,
    small_conversation,
)
from sgl_sparsekv.evaluation.tasks.turns.task import Grid, TurnsTask
from sgl_sparsekv.evaluation.tokens import Tokens

FULL = Reading("full", 256)
WORDS = ("a fox", "a hen", "an owl")


def conversation(length=0, seed=0):
    turns = (Turn(f"{i}?", "It is", f" {word}.", ("\n",), 5) for i, word in enumerate(WORDS))
    return Conversation("Three animals.\n", tuple(turns), ("<u>", "<a>", "<u>"))


def test_a_turn_s_prompt_goes_on_from_the_one_before_with_its_right_answer():
    asked = conversation()
    prompts = [asked.prompt(nth) for nth in range(3)]
    assert prompts[0] == "<u>Three animals.\n0?<a>It is"
    assert prompts[1] == f"{prompts[0]} a fox.<u>1?<a>It is"
    assert prompts[2] == f"{prompts[1]} a hen.<u>2?<a>It is"


@pytest.mark.parametrize("turns", [1, 4])
def test_a_real_conversation_fits_its_length_to_the_last_answer(prose_model, turns):
    tokens = Tokens(prose_model)
    asked = real_conversation(tokens, PLAIN, 4096, turns, 160, 3)
    last = asked.turns[-1]
    assert len(asked.turns) == turns == len({turn.question for turn in asked.turns})
    assert 2000 < len(tokens.ids(asked.prompt(turns - 1))) + last.most <= 4096
    for turn in asked.turns:
        quoted = turn.start.removeprefix("```python\n") + turn.answer
        assert quoted in asked.document and len(tokens.ids(turn.answer)) <= turn.most
    assert asked == real_conversation(tokens, PLAIN, 4096, turns, 160, 3)


def test_the_package_s_own_models_are_asked_in_turn(chain_model):
    tokens = Tokens(chain_model)
    asked = small_conversation("chain", 2048, 3, 0)
    assert len(tokens.ids(asked.prompt(2))) + asked.turns[2].most <= 2048
    assert [asked.turns[i].answer.split() != asked.turns[i + 1].answer.split() for i in (0, 1)]
    assert asked.prompt(2).startswith(asked.prompt(1) + asked.turns[1].answer)


class Server:
    """Knows the answers; a namespace's second prompt finds its first; `cold` goes wrong there."""

    def __init__(self, cold="right"):
        self.bodies, self.seen, self.cold = [], set(), cold

    def generate(self, body):
        self.bodies.append(body)
        space, options = body["extra_key"], body["sampling_params"]["custom_params"]["sparsekv"]
        turn = int(body["text"].split("?")[-2][-1])
        known = space in self.seen
        first = not known and turn > 0
        self.seen.add(space)
        said = f" {WORDS[turn]}." if not (first and self.cold == "wrong") else " a f"
        report = {**options, "tokens_attended": 10, "tokens_in_context": 40, "decode_steps": 2}
        ids = [ord(letter) for letter in said]
        return Reply(said, ids, 100 + turn, 90 if known else 0, report, [])


def test_the_first_turn_is_cold_the_others_are_warm_and_the_last_is_asked_cold_again():
    task, server = TurnsTask(conversation, Grid((512,), 3), {}), Server()
    (asked,) = task.build(task.parts()[0])
    found = task.ask(asked, FULL, server)
    assert found.value == 1 and found.said.split("\n")[2] == " an owl."
    assert found.detail["along"]["alike"] == [1, 1, 1]
    assert found.detail["along"]["cached tokens"] == [0, 90, 90]
    assert found.detail["along"]["prompt tokens"] == [100, 101, 102]
    assert found.detail["as cold"] == 1
    assert found.report == {"tokens_attended": 30, "tokens_in_context": 120, "decode_steps": 6}
    spaces = [body["extra_key"] for body in server.bodies]
    assert spaces[0] == spaces[1] == spaces[2] != spaces[3] and len(spaces) == 4
    assert server.bodies[3]["text"] == server.bodies[2]["text"] == asked.prompt(2)
    options = [body["sampling_params"]["custom_params"]["sparsekv"] for body in server.bodies]
    assert all(option["share_generated"] is False for option in options)
    again = task.ask(asked, FULL, server)
    assert again.detail["along"]["cached tokens"] == [0, 90, 90], "whoever asked before"


def test_what_is_not_the_same_cold_is_told():
    task, server = TurnsTask(conversation, Grid((512,), 3, cold=2), {}), Server("wrong")
    (asked,) = task.build(task.parts()[0])
    found = task.ask(asked, FULL, server)
    assert found.value == 1
    cold = [len(" a f") - 1, len(" a")]  # " a hen." and " an owl." part after so many letters
    assert found.detail["as cold"] == pytest.approx(sum(
        n / len(f" {word}.") for n, word in zip(cold, WORDS[1:], strict=True)
    ) / 2)  # fmt: skip
    assert alike(" a f", " a hen.") < 1


def test_nothing_is_asked_cold_if_it_is_not_wanted():
    task, server = TurnsTask(conversation, Grid((512,), 3, cold=0), {}), Server()
    (asked,) = task.build(task.parts()[0])
    assert "as cold" not in task.ask(asked, FULL, server).detail and len(server.bodies) == 3


def test_conversations_at_a_time_have_room_for_a_document_each():
    task = TurnsTask(conversation, Grid((512,), 3), {})
    pools = []
    for concurrency in (1, 4):
        settings = Settings("m", ("full",), (256,), 0, concurrency)
        flags = server_spec(SimpleNamespace(), settings, task).flags
        pools.append(int(flags[flags.index("--max-total-tokens") + 1]))
    assert pools[1] - pools[0] >= 3 * (512 + POOL_SPARE)
