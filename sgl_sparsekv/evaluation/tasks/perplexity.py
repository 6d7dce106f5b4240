"""Perplexity of decode: how well text is foretold when each token is read by a decode step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..client import Client
from ..settings import Reading
from ..tokens import Tokens
from .base import Outcome, Part
from .following import follow
from .texts import Text


@dataclass(frozen=True)
class Passage:
    """A context and the text that follows it, as token ids."""

    name: str
    context: list[int]
    text: list[int]


class PerplexityTask:
    """One passage per text and length: its last tokens are scored, those before are its context.

    A passage ends where its text does, so that all lengths of a text score the same tokens.
    """

    name = "perplexity"
    higher_is_better = False
    forces = True

    def __init__(
        self, tokens: Tokens, texts: Sequence[Text], lengths: Sequence[int], scored: int
    ) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            texts: what is read, one sample each.
            lengths: tokens of context and scored text together.
            scored: tokens of it that decode reads; the first is foretold by prefill and not scored.

        Raises:
            ValueError: no text is long enough for a length, or a length leaves no context.
        """
        if scored < 2:
            raise ValueError(f"tokens must be at least 2, got {scored}")
        if min(lengths) <= scored:
            raise ValueError(f"lengths must be above {scored} tokens scored, got {min(lengths)}")
        self._scored, self._lengths = scored, tuple(lengths)
        self.longest = max(lengths)
        self._texts = [(text.name, tokens.ids(text.text + text.continuation)) for text in texts]
        for length in lengths:
            if not any(len(ids) >= length for _, ids in self._texts):
                longest = max(len(ids) for _, ids in self._texts)
                raise ValueError(
                    f"lengths must be at most the longest text's {longest} tokens, got {length}"
                )

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        names = [name for name, _ in self._texts]
        return {"lengths": self._lengths, "scored": self._scored, "texts": names}

    def parts(self) -> Sequence[Part]:
        """See `Task`; a text that is too short for a length is left out of it."""
        return [
            Part(self.name, length, sample)
            for length in self._lengths
            for sample, (_, ids) in enumerate(self._texts)
            if len(ids) >= length
        ]

    def build(self, part: Part) -> Sequence[Passage]:
        """See `Task`."""
        name, ids = self._texts[part.sample]
        ids = ids[-part.length :]
        return [Passage(name, ids[: -self._scored], ids[-self._scored :])]

    def ask(self, question: Passage, reading: Reading, client: Client) -> Outcome:
        """See `Task`."""
        notes, reply = follow(client, reading, question.context, question.text, 1)
        foretold = sum(
            note.best == token for note, token in zip(notes, question.text[1:], strict=True)
        )
        return Outcome(
            metric="nll",
            value=-sum(note.log for note in notes) / len(notes),
            expected=(),
            said="",
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            report=reply.report,
            detail={"tokens": len(notes), "foretold": foretold / len(notes)},
        )
