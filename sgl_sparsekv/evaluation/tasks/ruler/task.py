"""RULER (arXiv 2404.06654): thirteen tasks at any length, made for the model's own tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..asking import Asking, Question, QuestionTask
from ..base import Part
from . import niah
from .counting import CommonWordsMaker, FrequentWordsMaker
from .fitting import largest
from .generated import linked_passages, single_passages
from .haystack import Essays
from .passages import read_hotpotqa, read_squad
from .qa import PassagesMaker
from .sample import Draw, Maker, Sample
from .scoring import METRICS
from .tracking import TrackingMaker
from .wording import digest, wording

TASKS = (*niah.TASKS, "vt", "cwe", "fwe", "qa_1", "qa_2")


class RulerTask(QuestionTask):
    """Each sample is a document of its own with one question; its part has that one question."""

    name = "ruler"

    def __init__(
        self,
        asking: Asking,
        names: Sequence[str],
        lengths: Sequence[int],
        samples: int,
        seed: int = 0,
        haystack: Path | None = None,
        squad: Path | None = None,
        hotpotqa: Path | None = None,
    ) -> None:
        """Read the files that are named.

        Args:
            asking: how questions are put.
            names: of the tasks; none for all of `TASKS`.
            lengths: tokens of prompt, chat template and answer together.
            samples: of each task and length; RULER takes 500.
            seed: another one gives other documents.
            haystack: text of the essays; None for generated prose.
            squad: file of `qa_1`; None for a generated set.
            hotpotqa: file of `qa_2`; None for a generated set.

        Raises:
            ValueError: a name is unknown, a file cannot be used, or the wording is not installed.
        """
        super().__init__(asking)
        if unknown := [name for name in names if name not in TASKS]:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {unknown[0]!r}")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self._names = tuple(names) or TASKS
        self._lengths = tuple(lengths)
        self._samples = samples
        self._seed = seed
        self._words = wording()
        self._essays = Essays(haystack)
        self._single = single_passages() if squad is None else read_squad(squad)
        self._linked = linked_passages() if hotpotqa is None else read_hotpotqa(hotpotqa)
        self._makers = {name: self._maker(name) for name in self._names}

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "tasks": list(self._names),
            "lengths": list(self._lengths),
            "samples": self._samples,
            "seed": self._seed,
            "haystack": self._essays.name,
            "qa_1": self._single.name,
            "qa_2": self._linked.name,
            "wording": digest(self._words),
        }

    def parts(self) -> Sequence[Part]:
        """See `Task`."""
        return [
            Part(name, length, sample)
            for length in self._lengths
            for name in self._names
            for sample in range(self._samples)
        ]

    def build(self, part: Part) -> Sequence[Question]:
        """See `Task`: one question, its document as long as fits."""
        maker, draw = self._makers[part.task], Draw(part.task, part.length, self._seed, part.sample)

        def size(units: int) -> int:
            return self._count(self._prompt(maker.make(draw, units)))

        least = maker.least(draw)
        units = largest(size, part.length - maker.new_tokens, least, maker.scale)
        if units is None:
            needed = size(least) + maker.new_tokens
            raise ValueError(
                f"length must be at least {needed} for sample {part.sample} of {part.task}, "
                f"got {part.length}"
            )
        sample = maker.make(draw, units)
        return [
            Question(
                document=sample.document,
                question=sample.question,
                start=sample.start,
                references=sample.references,
                metric=maker.metric,
                max_new_tokens=maker.new_tokens,
                place=sample.place,
            )
        ]

    def judge(self, question: Question, said: str) -> float:
        """See `QuestionTask`."""
        return METRICS[question.metric](said, question.references)

    def _maker(self, name: str) -> Maker:
        if name in niah.TASKS:
            return niah.NeedleMaker(niah.TASKS[name], self._words, self._essays)
        if name == "vt":
            return TrackingMaker(self._words, self._count)
        if name == "cwe":
            return CommonWordsMaker(self._words)
        if name == "fwe":
            return FrequentWordsMaker(self._words)
        return PassagesMaker(self._words, self._single if name == "qa_1" else self._linked)

    def _prompt(self, sample: Sample) -> str:
        before, after = self.asking.chat
        return before + sample.document + sample.question + after + sample.start

    def _count(self, text: str) -> int:
        return len(self.asking.tokens.ids(text))
