"""Fidelity: how far decode that reads sparsely strays from decode that reads everything.

The dense run's own words (or a given continuation) are followed in every way of reading, so all see
the same past in every step, and the distributions of the next token are compared.
"""

from collections.abc import Sequence
from typing import Any

from ..client import Client
from ..settings import Reading
from ..tokens import Tokens
from .base import Outcome, Part
from .comparing import LIKELIEST, Comparison, Prompt, split
from .texts import Text


class FidelityTask:
    """One prompt per sample. Its KL is over the dense step's 128 likeliest tokens and the rest as
    one bucket: at most the true divergence, and equal to it for vocabularies as small as that."""

    name = "fidelity"
    forces = True
    apart = False

    def __init__(self, tokens: Tokens, texts: Sequence[Text], followed: int) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            texts: prompts; a continuation is followed where there is one.
            followed: tokens that decode follows, at most.

        Raises:
            ValueError: too few tokens to compare.
        """
        if followed < 2:
            raise ValueError(f"tokens must be at least 2, got {followed}")
        self._followed = followed
        self._names = [text.name for text in texts]
        self._prompts = [_prompt(tokens, i, text, followed) for i, text in enumerate(texts)]
        self.longest = max(prompt.longest for prompt in self._prompts)
        self._comparison = Comparison()

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {"followed": self._followed, "watched": LIKELIEST, "texts": self._names}

    def parts(self) -> Sequence[Part]:
        """See `Task`."""
        return [Part(self.name, 0, prompt.number) for prompt in self._prompts]

    def build(self, part: Part) -> Sequence[Prompt]:
        """See `Task`."""
        return [self._prompts[part.sample]]

    def ask(self, question: Prompt, reading: Reading | None, client: Client) -> Outcome:
        """See `Task`, and `Comparison.stray` for a reading of None."""
        found = self._comparison.stray(question, reading, client)
        return Outcome(
            metric="kl",
            value=found.value,
            expected=(),
            said="",
            prompt_tokens=found.reply.prompt_tokens,
            cached_tokens=found.reply.cached_tokens,
            report=found.reply.report,
            detail=found.detail(),
        )


def _prompt(tokens: Tokens, number: int, text: Text, followed: int) -> Prompt:
    if not text.continuation:
        return Prompt(number, tokens.ids(text.text), None, followed, text.name)
    ids, rest = split(tokens, text.text, text.continuation)
    return Prompt(number, ids, rest[:followed], followed, text.name)
