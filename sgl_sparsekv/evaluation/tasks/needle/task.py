"""The needle grid: length by depth, one answer or several at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..asking import Asking, Question, QuestionTask
from ..base import Part
from .haystack import MAX_DEPTHS, Builder
from .prose import ProseBuilder
from .small_models import chain_haystack, facts_haystack

EXACT, OCCURS = "words right", "numbers found"


@dataclass(frozen=True)
class Grid:
    """What is asked.

    Attributes:
        documents: which kind fits the model: chain, facts or prose.
        lengths: columns of the map: tokens of prompt and answer together.
        depths: rows of the map; row i asks for a needle in part i of so many of the document.
        needles: per answer.
        samples: documents per length, so questions per square.
        seed: of the first sample's documents.
    """

    documents: str
    lengths: tuple[int, ...]
    depths: int
    needles: int = 1
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.depths <= MAX_DEPTHS:
            raise ValueError(f"depths must be from 1 to {MAX_DEPTHS}, got {self.depths}")
        if not 1 <= self.needles <= 16:
            raise ValueError(f"needles must be from 1 to 16, got {self.needles}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


class NeedleTask(QuestionTask):
    """Each document holds a needle at every depth, and each is asked by itself."""

    name = "needle"

    def __init__(self, asking: Asking, grid: Grid) -> None:
        super().__init__(asking)
        self.grid = grid
        self._builder: Builder = {
            "chain": chain_haystack,
            "facts": facts_haystack,
        }.get(grid.documents) or ProseBuilder(asking.tokens.ids)

    @property
    def longest(self) -> int:
        """See `Task`; a chat template comes on top of the lengths."""
        chat = "".join(self.asking.chat)
        return super().longest + (len(self.asking.tokens.ids(chat)) if chat else 0)

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {**vars(self.grid), "protocol": self.asking.protocol}

    def parts(self) -> Sequence[Part]:
        """See `Task`."""
        return [
            Part(self.name, length, sample, self.grid.depths)
            for length in self.grid.lengths
            for sample in range(self.grid.samples)
        ]

    def build(self, part: Part) -> Sequence[Question]:
        """See `Task`."""
        grid = self.grid
        haystack = self._builder(part.length, grid.depths, grid.needles, grid.seed + part.sample)
        return [
            Question(
                document=haystack.text,
                question=needle.question,
                references=needle.parts,
                metric=EXACT if needle.exact else OCCURS,
                max_new_tokens=needle.tokens,
                place=needle.place,
                spans=needle.spans,
            )
            for needle in haystack.needles
        ]

    def judge(self, question: Question, said: str) -> float:
        """Share of the parts of the answer that are there; exact ones in their places."""
        if question.metric == EXACT:
            words, wanted = said.split(), " ".join(question.references).split()
            if len(question.references) == 1:
                return float(words == wanted)
            hits = sum(a == b for a, b in zip(words, wanted, strict=False))
            return hits / len(wanted) if len(words) <= len(wanted) else 0.0
        text = " ".join(said.split())
        return sum(part in text for part in question.references) / len(question.references)
