"""What is asked in a conversation, turn by turn, and what each turn's prompt is."""

from dataclasses import dataclass

from ...tokens import Tokens
from ..needle.small_models import chain_haystack, facts_haystack
from ..real.document import real_document
from ..real.wording import ask_for, spread

ROOM = 128
"""Tokens of a turn beside its answer: question, how the answer begins, a template."""
PLAIN = ("", "\n\n", "\n\n")
"""Around words where no chat template is used; see `Tokens.turns`."""


@dataclass(frozen=True)
class Turn:
    """A question, and what is right.

    Attributes:
        question: of the user.
        start: how the answer begins, given to the model.
        answer: what is right after that.
        stop: texts that end an answer.
        most: tokens of an answer.
    """

    question: str
    start: str
    answer: str
    stop: tuple[str, ...]
    most: int


@dataclass(frozen=True)
class Conversation:
    """A document and what is asked about it.

    A turn's prompt holds the right answers of those before it: so every reading is asked the same.

    Attributes:
        document: of the first turn, before its question.
        turns: in order.
        around: text before a user's first words, after a user's words, and after an answer's.
    """

    document: str
    turns: tuple[Turn, ...]
    around: tuple[str, str, str]

    def prompt(self, nth: int) -> str:
        """Of a turn, from 0."""
        before, after, between = self.around
        said = before + self.document
        for turn in self.turns[:nth]:
            said += turn.question + after + turn.start + turn.answer + between
        return said + self.turns[nth].question + after + self.turns[nth].start


def real_conversation(
    tokens: Tokens, around: tuple[str, str, str], length: int, turns: int, most: int, seed: int
) -> Conversation:
    """Passages of a real document to quote, functions and paragraphs by turns.

    Args:
        tokens: tokenizer of the model.
        around: see `Conversation`.
        length: tokens of the last prompt and its answer together, at most.
        turns: how many.
        most: tokens of an answer, at most.
        seed: the same gives the same.

    Raises:
        ValueError: the length is too short for so many turns.
    """
    document = real_document(tokens.ids, _size(length, turns, most + ROOM), 0, seed)
    fitting = tuple(p for p in document.passages if len(tokens.ids(p.rest)) <= most)
    asked = [ask_for(passage) for passage in spread(fitting, turns)]
    return Conversation(
        document.text,
        tuple(Turn(one.question, one.start, one.answer, one.stop, most) for one in asked),
        around,
    )


def small_conversation(kind: str, length: int, turns: int, seed: int) -> Conversation:
    """Of a model that this package brings: facts or ways that its document tells.

    Raises:
        ValueError: the length is too short for so many turns.
    """
    make = chain_haystack if kind == "chain" else facts_haystack
    haystack = make(_size(length, turns, ROOM), turns, 1, seed)
    return Conversation(
        haystack.text,
        tuple(
            Turn(needle.question, "", f" {' '.join(needle.parts)}", (), needle.tokens)
            for needle in haystack.needles
        ),
        ("", "", ""),
    )


def _size(length: int, turns: int, each: int) -> int:
    """Tokens of a document that leaves as much room for each turn."""
    if length <= turns * each:
        raise ValueError(f"lengths must be above {turns * each} for {turns} turns, got {length}")
    return length - turns * each
