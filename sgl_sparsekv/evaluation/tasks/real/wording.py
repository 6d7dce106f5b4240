"""How a passage of a document is asked for, and how the answer begins."""

from dataclasses import dataclass

from .document import BETWEEN, Passage

FUNCTION = 'Quote the function "{name}" from the text above, word for word.'
PARAGRAPH = 'Quote the paragraph from the text above that begins with "{opening}", word for word.'
FENCE = "```"


@dataclass(frozen=True)
class Asked:
    """A passage that is asked for.

    Attributes:
        question: about the document before it.
        start: how the answer begins, given to the model.
        answer: what is right after that.
        stop: texts that end an answer.
        place: share of the document before it.
    """

    question: str
    start: str
    answer: str
    stop: tuple[str, ...]
    place: float


def ask_for(passage: Passage) -> Asked:
    """A function as code, its name given; a paragraph by its first words."""
    if passage.function:
        question = FUNCTION.format(name=passage.function)
        stop = (f"\n{FENCE}", *(f"{BETWEEN}{word}" for word in ("def ", "class ", "@")))
        return Asked(
            question, f"{FENCE}python\n{passage.opening}", passage.rest, stop, passage.place
        )
    question = PARAGRAPH.format(opening=" ".join(passage.opening.split()))
    return Asked(question, passage.opening, passage.rest, (BETWEEN,), passage.place)


def spread(passages: tuple[Passage, ...], count: int) -> list[Passage]:
    """So many of them, one in each equal part of the document; functions and prose by turns.

    Raises:
        ValueError: the document has too few.
    """
    left, found = list(passages), list[Passage]()
    for nth in range(count):
        if not left:
            raise ValueError(f"length must leave room for {count} passages, got {len(passages)}")
        fitting = [p for p in left if bool(p.function) == (nth % 2 == 0)] or left
        wanted = (nth + 0.5) / count
        nearest = min(fitting, key=lambda passage: abs(passage.place - wanted))
        found.append(nearest)
        left.remove(nearest)
    return found
