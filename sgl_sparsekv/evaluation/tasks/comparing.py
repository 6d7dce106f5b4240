"""Text that decode follows, dense beside sparse: what reading everything says, and who strays."""

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..client import Client, EvaluationStopped, Reply
from ..settings import Reading
from ..tokens import Tokens, shared
from .following import Note, follow

LIKELIEST = 128
"""Likeliest tokens of the dense step whose probabilities are compared; the rest is one bucket."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the text that decode follows.

    Attributes:
        number: no other prompt of the run has it.
        ids: what prefill reads.
        text: what is followed; None for what the dense run says.
        followed: tokens that the dense run says, at most, where `text` is None.
        name: for messages.
    """

    number: int
    ids: list[int]
    text: list[int] | None
    followed: int
    name: str

    @property
    def longest(self) -> int:
        """Tokens of the prompt and what is followed, at most."""
        return len(self.ids) + (self.followed if self.text is None else len(self.text))


@dataclass(frozen=True)
class Straying:
    """How far one reading of a text strays from the dense one, per token but the first.

    Attributes:
        kl: divergence of the dense distribution from this one, nats.
        same: the likeliest token is dense's.
        reply: of the server.
    """

    kl: list[float]
    same: list[bool]
    reply: Reply

    def detail(self) -> dict[str, Any]:
        """What it comes to, for an outcome."""
        steps = len(self.same)
        return {
            "tokens": steps,
            "worst": max(self.kl),
            "top-1": sum(self.same) / steps,
            "diverged at": self.same.index(False) + 1 if False in self.same else steps + 1,
        }

    @property
    def value(self) -> float:
        """Mean divergence, nats."""
        return sum(self.kl) / len(self.kl)


@dataclass(frozen=True)
class _Dense:
    text: list[int]
    notes: list[Note]


class Comparison:
    """Asks the dense run of a prompt once, whoever is compared with it first."""

    def __init__(self) -> None:
        self._dense: dict[int, _Dense] = {}
        self._locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    def stray(self, prompt: Prompt, reading: Reading | None, client: Client) -> Straying:
        """Follow the text as `reading` reads; None, once the dense run is known, stands for a
        server of another backend.

        Raises:
            EvaluationStopped: the server cannot go on, or the dense run said too little.
        """
        with self._locks[prompt.number]:
            if prompt.number not in self._dense:
                assert reading is not None
                self._dense[prompt.number] = _read_all(prompt, reading, client)
        dense = self._dense[prompt.number]
        watched = [[dense.text[0]], *(note.ids for note in dense.notes)]
        notes, reply = follow(client, reading, prompt.ids, dense.text, watched)
        pairs = list(zip(dense.notes, notes, strict=True))
        return Straying(
            [divergence(a, b) for a, b in pairs], [a.best == b.best for a, b in pairs], reply
        )


def _read_all(prompt: Prompt, reading: Reading, client: Client) -> _Dense:
    """What decode that reads everything says, and what it thought of it."""
    full = Reading("full", reading.budget)
    text = prompt.text
    if text is None:
        sampling = {"max_new_tokens": prompt.followed, "temperature": 0}
        custom = {"sparsekv": full.options()}
        body = {"input_ids": prompt.ids}
        reply = client.generate({**body, "sampling_params": {**sampling, "custom_params": custom}})
        text = reply.output_ids
    if len(text) < 2:
        raise EvaluationStopped(f"text {prompt.name} must have 2 tokens to follow, got {len(text)}")
    notes, _ = follow(client, full, prompt.ids, text, LIKELIEST)
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


def split(tokens: Tokens, text: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a text and of what follows it; a token that joins both is of the latter."""
    ids, whole = tokens.ids(text), tokens.ids(text + continuation)
    start = shared(ids, whole)
    return whole[:start], whole[start:]
