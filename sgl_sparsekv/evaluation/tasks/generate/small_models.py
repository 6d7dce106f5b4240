"""Outputs of the models that this package brings, which read their own vocabulary alone."""

from typing import Any

from ...tokens import Tokens
from ..needle.small_models import chain_haystack, facts_haystack, written_text
from .judging import Anything, Quotation
from .wanted import Wanted

RETOLD = 256
"""Tokens kept free for a text that goes on; it is cut to what a run asks for."""


class SmallPrompts:
    """To go on with a text that can only be foretold by looking it up, and to quote from it."""

    tasks: tuple[str, ...] = ("continue", "copy")

    def __init__(self, tokens: Tokens, kind: str, new_tokens: int) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            kind: chain or facts.
            new_tokens: of an output, at most.
        """
        self._tokens, self._kind, self._new = tokens, kind, new_tokens

    def settings(self) -> dict[str, Any]:
        """See `Prompts`."""
        return {"documents": self._kind}

    def make(self, task: str, length: int, seed: int, count: int) -> list[Wanted]:
        """See `Prompts`."""
        if task == "continue":
            text = written_text(self._kind, length - RETOLD, seed)
            words = " ".join(text.continuation.split()[: min(self._new, RETOLD)])
            return [Wanted(text.text, f" {words}", Anything(), most=len(words.split()))]
        haystack = (chain_haystack if self._kind == "chain" else facts_haystack)(
            length, count, 1, seed
        )
        found = []
        for needle in haystack.needles:
            answer = " ".join(needle.parts)
            found.append(
                Wanted(
                    prompt=haystack.text + needle.question,
                    follow=f" {answer}",
                    judge=Quotation(answer),
                    expected=answer,
                    most=needle.tokens,
                    place=needle.place,
                )
            )
        return found
