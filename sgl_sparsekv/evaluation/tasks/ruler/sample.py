"""What the makers of RULER's tasks have in common."""

import random
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Draw:
    """Which sample is made; the same one is the same text in every process.

    Attributes:
        task: name of the task.
        length: tokens of prompt and answer.
        seed: of the run.
        sample: its number, from 0.
    """

    task: str
    length: int
    seed: int
    sample: int

    def rng(self, what: str) -> random.Random:
        """Random numbers of one kind of thing, which another kind does not shift."""
        return random.Random(f"{self.task} {self.length} {self.seed} {self.sample} {what}")


@dataclass(frozen=True)
class Sample:
    """A published prompt, cut in three: nothing stands between the parts.

    Attributes:
        document: all up to the end of the context.
        question: what follows it.
        start: how the answer begins.
        references: the right answers.
        place: share of the document's characters before the one thing asked for; None if several.
    """

    document: str
    question: str
    start: str
    references: tuple[str, ...]
    place: float | None = None


class Maker(Protocol):
    """Makes the samples of one task; a sample has room for more or fewer units of haystack.

    A unit is a word, a line or a document.
    """

    new_tokens: int
    """Tokens of an answer."""
    metric: str
    """`string_match_all` or `string_match_part`."""
    scale: int
    """Units of a small document."""

    def least(self, draw: Draw) -> int:
        """Fewest units that a sample needs.

        Raises:
            ValueError: there is no such sample.
        """
        ...

    def make(self, draw: Draw, units: int) -> Sample:
        """The sample with that much haystack; more units only add to it."""
        ...


def cut(template: str, **fields: str) -> tuple[str, str]:
    """A template before and after its context, all other fields filled in."""
    head, _, tail = template.partition("{context}")
    return fill(head, **fields), fill(tail, **fields)


def fill(template: str, **fields: str) -> str:
    """A template with its fields filled in; braces within the texts stay as they are."""
    pieces, rest = [], template
    while rest:
        before, brace, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        pieces += [before, fields[name] if brace else ""]
    return "".join(pieces)
