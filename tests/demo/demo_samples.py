"""Answers and selections as a demo would have recorded them."""

import random
from pathlib import Path
from typing import Any

from sgl_sparsekv.demo.answer import Answer
from sgl_sparsekv.demo.scenario import Question, Scenario
from sgl_sparsekv.demo.score import RunScore, score_run
from sgl_sparsekv.demo.selections import SelectionLog
from sgl_sparsekv.serving.trace import SelectionRecord

UNIT, TOKENS, WORDS, LAYER = 16, 16_384, 8, 2


def scenario(questions: int = 16) -> Scenario:
    """Questions whose facts lie anywhere in the document."""
    rng = random.Random(7)
    asked = tuple(
        Question(
            f" question : route start at Town{i} <x>",
            tuple(f"w{i}-{j}" for j in range(WORDS)),
            tuple(rng.randrange(TOKENS) for _ in range(WORDS)),
        )
        for i in range(questions)
    )
    return Scenario("analytic", Path("model"), "words ...", TOKENS, asked)


def answer(asked: Scenario, index: int, right: int, report: dict[str, Any] | None) -> Answer:
    """An answer whose first `right` words are right; 10 ms a step."""
    words = asked.questions[index].answer
    said = (*words[:right], *("<lost>" for _ in words[right:]))
    return Answer(
        question=index,
        concurrent=index >= len(asked.questions) // 2,
        text=" ".join(said),
        rid=f"r{index}",
        cached_tokens=TOKENS - 1,
        arrivals=tuple((1.0 + 0.01 * i, 1 + i) for i in range(WORDS)),
        report=report,
    )


def run(asked: Scenario, name: str, right: int = WORDS, read: float = 1.0) -> RunScore:
    """A run in which every answer has `right` right words."""
    options = {} if name == "torch_native" else {"method": name, "budget": 512}
    report = None
    if options:
        there = 7 * TOKENS
        report = {
            **options,
            "rejected": None,
            "tokens_in_context": there,
            "tokens_attended": int(read * there),
        }
    answers = [answer(asked, i, right, report) for i in range(len(asked.questions))]
    return score_run(name, options, answers, asked)


def all_runs(asked: Scenario, quest: int = WORDS, streaming: int = 1) -> list[RunScore]:
    """The demo's four runs, with so many right words in quest's and streaming's answers."""
    return [
        run(asked, "torch_native"),
        run(asked, "full"),
        run(asked, "quest", quest, 0.031),
        run(asked, "streaming", streaming, 0.031),
    ]


class RecordedLog(SelectionLog):
    """A log that was filled before, and listens to nobody."""

    def __init__(self) -> None:
        self._steps = {}
        self.unit_size = 0

    @property
    def lost(self) -> int:
        return 0

    def add(self, record: SelectionRecord) -> None:
        by_step = self._steps.setdefault(record.rid, {})
        by_step.setdefault(record.step, {})
        super().add(record)

    def close(self) -> None:
        return


def log(asked: Scenario) -> SelectionLog:
    """Sinks, window, the needed unit and some others in layer 2; no needed unit in layer 1."""
    rng, found = random.Random(3), RecordedLog()
    last = TOKENS // UNIT
    for i, question in enumerate(asked.questions):
        for step, place in enumerate(question.needles[1:]):
            heads = []
            for _ in range(2):
                chosen = {0, *range(last - 4, last + 1), *rng.sample(range(last), 26)}
                heads.append(sorted(chosen | {place // UNIT}))
            found.add(SelectionRecord(step, LAYER, f"r{i}", "quest", TOKENS, heads, UNIT, 0))
            found.add(SelectionRecord(step, 1, f"r{i}", "quest", TOKENS, [[0], [0]], UNIT, 0))
    return found
