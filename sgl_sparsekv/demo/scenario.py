"""What is asked: a model, one document, and questions whose answers lie in known places of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One question about the document.

    Attributes:
        prompt: text that follows the document.
        answer: expected words, one token each.
        needles: per answer word, the position (in tokens of the prompt) of the fact it is read
            from.
    """

    prompt: str
    answer: tuple[str, ...]
    needles: tuple[int, ...]


@dataclass(frozen=True)
class Scenario:
    """A model and what it is asked.

    Attributes:
        model: how the model is called.
        path: its folder.
        document: the shared text.
        document_tokens: its length in tokens, `<s>` included.
        questions: all about this document.
    """

    model: str
    path: Path
    document: str
    document_tokens: int
    questions: tuple[Question, ...]

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest answer."""
        return max(len(question.answer) for question in self.questions)


def words_right(answer: Sequence[str], text: str) -> tuple[bool, ...]:
    """Per expected word, whether the text has it in its place."""
    said = text.split()
    return tuple(i < len(said) and said[i] == word for i, word in enumerate(answer))
