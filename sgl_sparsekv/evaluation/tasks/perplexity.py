"""Perplexity of decode: how well text is foretold when each token is read by a decode step."""

from collections.abc import Mapping, Sequence
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
    forces = True
    apart = False

    def __init__(self, tokens: Tokens, texts: Mapping[int, Sequence[Text]], scored: int) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            texts: what is read, one sample each, by the tokens of context and scored text together.
            scored: tokens of it that decode reads; the first is foretold by prefill and not scored.

        Raises:
            ValueError: no text is long enough for a length, or a length leaves no context.
        """
        if scored < 2:
            raise ValueError(f"tokens must be at least 2, got {scored}")
        if min(texts) <= scored:
            raise ValueError(f"lengths must be above {scored} tokens scored, got {min(texts)}")
        self.longest = max(texts)
        self._scored = scored
        once = {text: None for own in texts.values() for text in own}
        ids = {text: tokens.ids(text.text + text.continuation) for text in once}
        self._texts = {n: [(text.name, ids[text]) for text in own] for n, own in texts.items()}
        for length, own in self._texts.items():
            longest = max(len(ids) for _, ids in own)
            if longest < length:
                raise ValueError(
                    f"lengths must be at most the longest text's {longest} tokens, got {length}"
                )

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        names = sorted({name for own in self._texts.values() for name, _ in own})
        return {"lengths": tuple(self._texts), "scored": self._scored, "texts": names}

    def parts(self) -> Sequence[Part]:
        """See `Task`; a text that is too short for a length is left out of it."""
        return [
            Part(self.name, length, sample)
            for length, own in self._texts.items()
            for sample, (_, ids) in enumerate(own)
            if len(ids) >= length
        ]

    def build(self, part: Part) -> Sequence[Passage]:
        """See `Task`."""
        name, ids = self._texts[part.length][part.sample]
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
