"""Documents with a needle at every depth, and the questions about them, by seed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WORD_ROOM = 32
"""Tokens kept free for question and answer of a document of words."""
CHAIN_PLACES = 1024


@dataclass(frozen=True)
class Needle:
    """One question about a document.

    Attributes:
        depth: row of the map.
        place: share of the document that lies before the needle, 0 to 1.
        question: text that follows the document.
        answer: what must be said.
        tokens: new tokens to ask for.
        exact: the answer must be all that is said; else it must occur in it.
    """

    depth: int
    place: float
    question: str
    answer: str
    tokens: int
    exact: bool

    def found_in(self, said: str) -> bool:
        """Whether it was answered right, white space aside."""
        answer, words = self.answer.split(), said.split()
        return words == answer if self.exact else " ".join(answer) in " ".join(words)


@dataclass(frozen=True)
class Haystack:
    """A document and one question per depth; all share the document as a prefix."""

    text: str
    needles: tuple[Needle, ...]


class Builder(Protocol):
    """Makes the document of one column of the map."""

    def __call__(self, length: int, depths: int, seed: int) -> Haystack:
        """A document that, with question and answer, takes at most `length` tokens.

        Raises:
            ValueError: `length` is too short for so many needles.
        """
        ...


def chain_haystack(length: int, depths: int, seed: int) -> Haystack:
    """For the analytic model: two sign posts to follow, the second at the wanted depth.

    The first is found by dense prefill when the question is part of the prompt, so only the second
    tells how decode reads. Depths are met as closely as the sign posts allow.
    """
    from ..models import chain_document

    document = chain_document(length - WORD_ROOM, CHAIN_PLACES, 2, seed)
    needles = []
    for i in range(depths):
        wanted = (i + 0.5) / depths * document.num_tokens
        nearest = min(document.questions, key=lambda q: abs(q.positions[1] - wanted))
        place = nearest.positions[1] / document.num_tokens
        needles.append(Needle(i, place, f" {nearest.suffix}", nearest.answer, 2, True))
    return Haystack(document.text, tuple(needles))


def facts_haystack(length: int, depths: int, seed: int) -> Haystack:
    """For the trained model: facts of eight words, one asked per depth, and three unasked ones."""
    from ..models import needle_document

    document = needle_document(length - WORD_ROOM, depths, seed=seed)
    questions = sorted(document.questions, key=lambda question: question.depth)
    needles = tuple(
        Needle(i, q.depth, f" {q.suffix}", q.answer, len(q.answer_tokens), True)
        for i, q in enumerate(questions)
    )
    return Haystack(document.text, needles)


def kind_of(folder: Path) -> str:
    """Which documents a model can read: `chain`, `facts` or, for any other model, `prose`.

    Raises:
        ValueError: the folder is missing or holds no model.
    """
    from ..models import LOST, words

    if not (folder / "config.json").is_file():
        raise ValueError(f"model must be a folder with a config.json, got {str(folder)!r}")
    vocabulary = tokenizer_of(folder).get_vocab()
    if LOST in vocabulary:
        return "chain"
    return "facts" if all(name in vocabulary for name in words.FIRST_NAMES) else "prose"


def builder_for(kind: str, folder: Path) -> Builder:
    """The builder of that kind; `prose` is measured with the folder's tokenizer."""
    if kind == "prose":
        from .prose import ProseBuilder

        return ProseBuilder(token_counter(folder))
    return chain_haystack if kind == "chain" else facts_haystack


def token_counter(folder: Path) -> Callable[[str], list[int]]:
    """Text to token ids, special tokens included, as the server counts a prompt."""
    tokenizer = tokenizer_of(folder)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, verbose=False).input_ids
        return found

    return ids


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer; nothing is downloaded.

    Raises:
        ValueError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model must have a tokenizer, got {str(folder)!r}: {reason}") from None
