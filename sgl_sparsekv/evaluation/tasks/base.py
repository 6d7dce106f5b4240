"""What an evaluation is made of: parts that are built, asked and resumed by themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..client import Client
from ..settings import Reading


@dataclass(frozen=True)
class Part:
    """The smallest piece that is built at once: one document and what is asked about it.

    Attributes:
        task: row of a table: needle, niah_single_1, qasper.
        length: tokens of prompt and answer it is made for; 0 where the data decides.
        sample: which of its task and length, from 0.
        questions: asked about its document, at least 1.
    """

    task: str
    length: int
    sample: int
    questions: int = 1


@dataclass(frozen=True)
class Outcome:
    """What one question came to.

    Attributes:
        metric: what `value` is.
        value: of the metric; from 0 (nothing right) to 1 where answers are judged.
        expected: the answers that were right.
        said: what came instead, or one of those.
        prompt_tokens: of the prompt.
        cached_tokens: of those, in the radix cache.
        report: the server's echo: options applied, and what was read.
        place: share of the document before what is looked for; None if there is no such place.
        detail: further numbers of this question, by name.
    """

    metric: str
    value: float
    expected: tuple[str, ...]
    said: str
    prompt_tokens: int
    cached_tokens: int
    report: dict[str, Any]
    place: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One evaluation. Parts and documents depend on its settings alone, never on answers."""

    name: str
    """As on the command line: needle, fidelity, generate."""

    @property
    def forces(self) -> bool:
        """It makes decode follow tokens, so the server must accept custom logit processors."""
        ...

    @property
    def apart(self) -> bool:
        """Its questions share no prefix: each asked at a time needs room of its own."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of its longest prompt and answer together, at most."""
        ...

    def settings(self) -> dict[str, Any]:
        """What decides its questions, for the header of the results; JSON."""
        ...

    def parts(self) -> Sequence[Part]:
        """All there is to ask, in order; nothing is built yet."""
        ...

    def build(self, part: Part) -> Sequence[Any]:
        """The questions of a part, `part.questions` of them, about one document.

        Raises:
            ValueError: it cannot be built as asked for, for instance too short.
        """
        ...

    def ask(self, question: Any, reading: Reading, client: Client) -> Outcome:
        """Put one question of `build` to the server, in one way of reading.

        Raises:
            EvaluationStopped: the server cannot go on.
        """
        ...
