"""Fidelity: how far decode that reads sparsely strays from decode that reads everything.

The dense run's own words (or a given continuation) are followed in every way of reading, so all see
the same past in every step, and the distributions of the next token are compared.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..client import Client, EvaluationStopped
from ..settings import Reading
from ..tokens import Tokens
from .base import Outcome, Part
from .following import Note, follow
from .texts import Text

LIKELIEST = 128
"""Likeliest tokens of the dense step whose probabilities are compared; the rest is one bucket."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the text that decode follows; None for what the dense run says."""

    number: int
    ids: list[int]
    text: list[int] | None


@dataclass(frozen=True)
class _Dense:
    text: list[int]
    notes: list[Note]


class FidelityTask:
    """One prompt per sample. Its KL is over the dense step's 128 likeliest tokens and the rest as
    one bucket: at most the true divergence, and equal to it for vocabularies as small as that."""

    name = "fidelity"
    forces = True

    def __init__(self, tokens: Tokens, texts: Sequence[Text], followed: int) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            texts: prompts; a continuation is followed where there is one.
            followed: tokens that decode follows, at most, where the dense run says them.

        Raises:
            ValueError: too few tokens to compare.
        """
        if followed < 2:
            raise ValueError(f"tokens must be at least 2, got {followed}")
        self._followed = followed
        self._names = [text.name for text in texts]
        self._prompts = [_prompt(tokens, i, text, followed) for i, text in enumerate(texts)]
        self.longest = max(len(p.ids) + len(p.text or [0] * followed) for p in self._prompts)
        self._dense: dict[int, _Dense] = {}
        self._lock = threading.Lock()

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
        """See `Task`; once the dense run is known, None stands for a server of another backend."""
        with self._lock:
            if question.number not in self._dense:
                assert reading is not None
                self._dense[question.number] = self._read_all(question, reading, client)
        dense = self._dense[question.number]
        watched = [[dense.text[0]], *(note.ids for note in dense.notes)]
        notes, reply = follow(client, reading, question.ids, dense.text, watched)
        steps = [divergence(a, b) for a, b in zip(dense.notes, notes, strict=True)]
        same = [a.best == b.best for a, b in zip(dense.notes, notes, strict=True)]
        return Outcome(
            metric="kl",
            value=sum(steps) / len(steps),
            expected=(),
            said="",
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            report=reply.report,
            detail={
                "tokens": len(steps),
                "worst": max(steps),
                "top-1": sum(same) / len(same),
                "diverged at": same.index(False) + 1 if False in same else len(same) + 1,
            },
        )

    def _read_all(self, question: Prompt, reading: Reading, client: Client) -> _Dense:
        """What decode that reads everything says, and what it thought of it."""
        full = Reading("full", reading.budget)
        text = question.text
        if text is None:
            sampling = {"max_new_tokens": self._followed, "temperature": 0}
            custom = {"sparsekv": full.options()}
            body = {"input_ids": question.ids}
            reply = client.generate(
                {**body, "sampling_params": {**sampling, "custom_params": custom}}
            )
            text = reply.output_ids
        if len(text) < 2:
            raise EvaluationStopped(
                f"text {self._names[question.number]} must have 2 tokens to follow, got {len(text)}"
            )
        notes, _ = follow(client, full, question.ids, text, LIKELIEST)
        return _Dense(text, notes)


def divergence(dense: Note, other: Note) -> float:
    """KL(dense || other) in nats, over the watched tokens and one bucket for all others.

    Both notes watch the same tokens. Merging outcomes can only lower a divergence.
    """
    total = 0.0
    for p, q in zip(dense.logs, other.logs, strict=True):
        total += math.exp(p) * (p - q)
    rest, other_rest = _rest(dense.logs), _rest(other.logs)
    if rest > 0:
        total += rest * math.log(rest / max(other_rest, 1e-12))
    return max(total, 0.0)


def _rest(logs: Sequence[float]) -> float:
    """Probability of all tokens that were not watched; rounding is no probability."""
    rest = 1.0 - math.fsum(math.exp(log) for log in logs)
    return rest if rest > 1e-6 else 0.0


def _prompt(tokens: Tokens, number: int, text: Text, followed: int) -> Prompt:
    ids = tokens.ids(text.text)
    if not text.continuation:
        return Prompt(number, ids, None)
    whole = tokens.ids(text.text + text.continuation)
    start = len(ids) if whole[: len(ids)] == ids else _shared(ids, whole)
    return Prompt(number, whole[:start], whole[start : start + followed])


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both start with; a tokenizer may join text and continuation."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
