"""LongBench v1 (arXiv 2308.14508): questions about real documents, from the user's files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..asking import Asking, Question, QuestionTask
from ..base import Part
from . import prompts as wording
from .datasets import ALL, FIRST_LINE, METRIC, PLAIN, base
from .records import Records
from .scoring import best, first_line, library
from .truncation import cut_middle

SEAM = 16
"""Tokens by which a text that lost its middle may grow when it is read again."""


@dataclass(frozen=True)
class LongBenchQuestion(Question):
    """A question of one set.

    Attributes:
        first_line: only the first line of the answer counts.
    """

    first_line: bool = False


class LongBenchTask(QuestionTask):
    """A part is one line of a file; sets of LongBench-E have a row for each bucket of lengths."""

    name = "longbench"

    def __init__(
        self,
        asking: Asking,
        folder: Path,
        names: Sequence[str] = (),
        samples: int | None = None,
        max_length: int = 31500,
        prompts: Path | None = None,
    ) -> None:
        """Read and check the files.

        Args:
            asking: how questions are put.
            folder: has `<set>.jsonl` and, for LongBench-E, `<set>_e.jsonl`.
            names: of the sets; none for all that are there.
            samples: the first so many of each row; None for all.
            max_length: tokens of a prompt beyond which its middle is cut, before the chat
                template and without the answer.
            prompts: a file like LongBench's `dataset2prompt.json`, which wins over its own.

        Raises:
            ValueError: a name is unknown, a file is missing or has another form, or the harness
                is not installed.
        """
        super().__init__(asking)
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {max_length}")
        library()
        self._samples = samples
        self._max_length = max_length
        self._prompts = wording.published()
        if prompts is not None:
            self._prompts = wording.read(prompts, self._prompts)
        self._rows: dict[str, tuple[Records, list[int]]] = {}
        for name in _chosen(folder, names):
            self._add(Records(folder / f"{name}.jsonl"))

    def _add(self, records: Records) -> None:
        if base(records.name) not in self._prompts:
            raise ValueError(f"prompts must have one for {records.name!r}, got none")
        for row, offsets in sorted(records.rows.items()):
            self._rows[row] = records, offsets[: self._samples]

    @property
    def longest(self) -> int:
        """See `Task`."""
        names = {base(records.name) for records, _ in self._rows.values()}
        answer = max(self._prompts[name].new_tokens for name in names)
        template = len(self.asking.tokens.ids("".join(self.asking.chat)))
        return self._max_length + SEAM + template + answer

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "questions": {row: len(offsets) for row, (_, offsets) in self._rows.items()},
            "samples": self._samples,
            "max_length": self._max_length,
            "prompts": wording.digest(self._prompts),
        }

    def parts(self) -> Sequence[Part]:
        """See `Task`."""
        return [
            Part(row, 0, sample)
            for row, (_, offsets) in self._rows.items()
            for sample in range(len(offsets))
        ]

    def build(self, part: Part) -> Sequence[Question]:
        """See `Task`."""
        records, offsets = self._rows[part.task]
        record, name = records.read(offsets[part.sample]), base(records.name)
        prompt = self._prompts[name]
        document, question = prompt.fill(record.context, record.input)
        document, question = cut_middle(self.asking.tokens, document, question, self._max_length)
        return [
            LongBenchQuestion(
                document=document,
                question=question,
                references=record.answers,
                metric=METRIC[name],
                max_new_tokens=prompt.new_tokens,
                classes=record.classes,
                chat=name not in PLAIN,
                first_line=name in FIRST_LINE,
            )
        ]

    def judge(self, question: Question, said: str) -> float:
        """See `QuestionTask`."""
        if isinstance(question, LongBenchQuestion) and question.first_line:
            said = first_line(said)
        return best(question.metric, said, question.references, question.classes)


def _chosen(folder: Path, names: Sequence[str]) -> Sequence[str]:
    """The sets to ask, or all that the folder has."""
    for name in names:
        if name not in ALL:
            raise ValueError(f"set must be one of {', '.join(ALL)}, got {name!r}")
    found = names or [name for name in ALL if (folder / f"{name}.jsonl").is_file()]
    if not found:
        raise ValueError(f"data must be a folder of LongBench's .jsonl files, got {str(folder)!r}")
    return found
