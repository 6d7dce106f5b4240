"""One output that is asked for, and who thinks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .judging import Judge


@dataclass(frozen=True)
class Wanted:
    """One output that is asked for.

    Attributes:
        prompt: document, question, and how the answer begins.
        follow: what decode is made to follow; "" for what the dense run says.
        judge: of what is said freely.
        expected: what is right; "" where nothing is.
        stop: texts that end it.
        most: tokens of it; None for as many as the run asks for.
        place: share of the document before what is looked for; None if there is no such place.
    """

    prompt: str
    follow: str
    judge: Judge
    expected: str = ""
    stop: tuple[str, ...] = ()
    most: int | None = None
    place: float | None = None


class Prompts(Protocol):
    """Makes the prompts of a run, for one kind of model."""

    tasks: tuple[str, ...]
    """That such a model can be asked."""

    def settings(self) -> dict[str, Any]:
        """What decides its prompts beside what `make` is given; JSON."""
        ...

    def make(self, task: str, length: int, seed: int, count: int) -> Sequence[Wanted]:
        """Outputs of one task about one document.

        Args:
            task: one of `tasks`.
            length: tokens of prompt and output together, at most.
            seed: the same gives the same.
            count: quotations or calls; other tasks have one output.

        Raises:
            ValueError: the length is too short for it.
        """
        ...
