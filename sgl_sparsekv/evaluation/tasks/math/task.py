"""Problems solved step by step; the last number is compared."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..asking import Asking, Question, QuestionTask
from ..base import Part
from .problems import MARK, Problem, last_number, read_problems, written

ASK = (
    f"Solve each problem step by step. End with a line that has its number alone, after {MARK}.\n\n"
)
PROBLEM, SOLUTION = "Problem: ", "\n\nSolution:"


class MathTask(QuestionTask):
    """A problem per sample; solved ones before it, the same for all, make the shared prefix."""

    name = "math"

    def __init__(
        self, asking: Asking, path: Path, shots: int, samples: int | None, new_tokens: int
    ) -> None:
        """Read the file.

        Args:
            asking: how problems are put.
            path: `.jsonl`, see `read_problems`.
            shots: the file's first problems, shown solved; they are not asked.
            samples: problems after them, at most; None for all.
            new_tokens: of an answer, at most.

        Raises:
            ValueError: the file cannot be used, or has too few problems.
        """
        super().__init__(asking)
        for name, value in (("samples", samples), ("tokens", new_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        found = read_problems(path)
        if not 0 <= shots < len(found):
            raise ValueError(f"shots must be from 0 to below {len(found)} problems, got {shots}")
        self._shown, asked = found[:shots], found[shots:]
        self._asked = asked[:samples]
        self._row, self._new = path.stem, new_tokens
        self._document = ASK + "".join(map(_solved, self._shown))

    @property
    def longest(self) -> int:
        """See `Task`."""
        before, after = self.asking.chat
        prompts = (f"{before}{self._document}{_question(p)}{after}" for p in self._asked)
        return self._new + max(len(self.asking.tokens.ids(prompt)) for prompt in prompts)

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "shots": len(self._shown),
            "samples": len(self._asked),
            "answers": self._new,
            "protocol": self.asking.protocol,
            "problems": _digest([*self._shown, *self._asked[:1]]),
        }

    def parts(self) -> Sequence[Part]:
        """See `Task`."""
        return [Part(self._row, 0, sample) for sample in range(len(self._asked))]

    def build(self, part: Part) -> Sequence[Question]:
        """See `Task`."""
        problem = self._asked[part.sample]
        return [
            Question(
                document=self._document,
                question=_question(problem),
                references=(written(problem.number),),
                metric="last number",
                max_new_tokens=self._new,
                stop=(f"\n{PROBLEM}",),
            )
        ]

    def judge(self, question: Question, said: str) -> float:
        """1 if the last number said is right, else 0."""
        return float(last_number(said) == last_number(question.references[0]))


def _question(problem: Problem) -> str:
    return f"{PROBLEM}{problem.text}{SOLUTION}"


def _solved(problem: Problem) -> str:
    steps = f"{problem.worked}\n" if problem.worked else ""
    return f"{_question(problem)} {steps}{MARK} {written(problem.number)}\n\n"


def _digest(problems: Sequence[Problem]) -> str:
    return hashlib.sha256(repr(problems).encode()).hexdigest()[:16]
