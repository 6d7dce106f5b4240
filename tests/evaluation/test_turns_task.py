"""Conversations over one growing prefix: what each turn's prompt is, and what is told of it."""

import math
from types import SimpleNamespace

import pytest

from sgl_sparsekv.evaluation.client import Reply
from sgl_sparsekv.evaluation.forced import FORCED
from sgl_sparsekv.evaluation.server import POOL_SPARE, server_spec
from sgl_sparsekv.evaluation.settings import Reading, Settings
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
        self.bodies, self.first, self.cold = [], {}, cold

    def generate(self, body):
        self.bodies.append(body)
        space, sampling = body["extra_key"], body["sampling_params"]
        text = body.get("text") or "".join(map(chr, body["input_ids"]))
        turn, known = int(text.split("?")[-2][-1]), space in self.first
        wrong = self.first.setdefault(space, turn) > 0 and self.cold == "wrong"
        custom = sampling["custom_params"]
        counts = {"tokens_attended": 10, "tokens_in_context": 40, "decode_steps": 2}
        report = {**custom["sparsekv"], **counts}
        if FORCED in custom:
            odds = [math.log(0.75), math.log(0.25)]
            note = [7, odds[0], [7, 8], odds[::-1] if wrong else odds]
            said = custom[FORCED]
            return Reply("", said, 100, 90, report, [note] * len(said))
        said = " a f" if wrong else f" {WORDS[turn]}."
        return Reply(said, ids_of(said), 100 + turn, 90 if known else 0, report, [])


def ids_of(text):
    return [ord(letter) for letter in text]


def turns_task(cold):
    """The task, and the conversation of its only part."""
    tokens = SimpleNamespace(ids=ids_of)
    task = TurnsTask(tokens, conversation, Grid((512,), 3, cold), {})
    return task, task.build(task.parts()[0])[0]


def test_the_first_turn_is_cold_the_others_are_warm_and_the_last_is_asked_cold_again():
    (task, asked), server = turns_task(1), Server()
    found = task.ask(asked, FULL, server)
    assert found.value == 1 and found.said.split("\n")[2] == " an owl."
    assert found.detail["along"]["alike"] == [1, 1, 1]
    assert found.detail["along"]["cached tokens"] == [0, 90, 90]
    assert found.detail["along"]["prompt tokens"] == [100, 101, 102]
    assert found.detail["as cold"] == 1 and found.detail["KL of cold"] == 0
    assert found.report == {"tokens_attended": 30, "tokens_in_context": 120, "decode_steps": 6}
    spaces = [body["extra_key"] for body in server.bodies]
    warm, cold = spaces[0], spaces[3]
    assert warm != cold and spaces == [warm] * 3 + [cold] * 2 + [warm]
    assert server.bodies[3]["text"] == server.bodies[2]["text"] == asked.prompt(2)
    forced = [body["sampling_params"]["custom_params"][FORCED] for body in server.bodies[4:]]
    assert forced == [ids_of(" an owl.")] * 2
    options = [body["sampling_params"]["custom_params"]["sparsekv"] for body in server.bodies]
    assert all(option["share_generated"] is False for option in options)
    again = task.ask(asked, FULL, server)
    assert again.detail["along"]["cached tokens"] == [0, 90, 90], "whoever asked before"


def test_what_is_not_the_same_cold_is_told():
    (task, asked), server = turns_task(2), Server("wrong")
    found = task.ask(asked, FULL, server)
    assert found.value == 1 and task.forces
    shares = [len(" a ") / len(" a hen."), len(" a") / len(" an owl.")]
    assert found.detail["as cold"] == pytest.approx(sum(shares) / 2)
    assert found.detail["KL of cold"] == pytest.approx(0.5 * math.log(3))


def test_nothing_is_asked_cold_or_forced_if_it_is_not_wanted():
    (task, asked), server = turns_task(0), Server()
    assert "as cold" not in task.ask(asked, FULL, server).detail
    assert len(server.bodies) == 3 and not task.forces


def test_conversations_at_a_time_have_room_for_a_document_each():
    task, _ = turns_task(1)
    pools = []
    for concurrency in (1, 4):
        settings = Settings("m", ("full",), (256,), 0, concurrency)
        flags = server_spec(SimpleNamespace(), settings, task).flags
        pools.append(int(flags[flags.index("--max-total-tokens") + 1]))
    assert pools[1] - pools[0] >= 3 * (512 + POOL_SPARE)
