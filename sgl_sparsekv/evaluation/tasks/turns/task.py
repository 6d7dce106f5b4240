"""Conversations: each turn finds the ones before it in the radix cache, the first one nothing."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...client import Client, Reply
from ...settings import Reading
from ..base import Outcome, Part
from ..likeness import alike
from .conversation import Conversation

COUNTED = ("tokens_attended", "tokens_in_context", "decode_steps")


@dataclass(frozen=True)
class Grid:
    """What is asked.

    Attributes:
        lengths: tokens of a conversation.
        turns: of a conversation.
        cold: of its last turns, how many are asked again with nothing in the cache.
        samples: conversations per length.
        seed: of the first.
    """

    lengths: tuple[int, ...]
    turns: int = 4
    cold: int = 1
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("turns", "samples"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.cold < max(2, self.turns):
            raise ValueError(f"cold must be from 0 to below {self.turns} turns, got {self.cold}")


class TurnsTask:
    """Its number is the mean likeness of the answers to what is right.

    A conversation is a question: its turns follow each other whatever else is asked. Each has a
    namespace of its own in the radix cache, so that its first turn is cold in every reading.
    """

    name = "turns"
    forces = False
    apart = True

    def __init__(
        self, make: Callable[[int, int], Conversation], grid: Grid, about: dict[str, Any]
    ) -> None:
        """Prepare.

        Args:
            make: a conversation from its length and its seed.
            grid: what is asked.
            about: what else decides the conversations, for the header of the results.
        """
        self._make, self.grid, self._about = make, grid, about

    @property
    def longest(self) -> int:
        """See `Task`."""
        return max(self.grid.lengths)

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {**vars(self.grid), **self._about}

    def parts(self) -> Sequence[Part]:
        """See `Task`."""
        return [
            Part(self.name, length, sample)
            for length in self.grid.lengths
            for sample in range(self.grid.samples)
        ]

    def build(self, part: Part) -> Sequence[Conversation]:
        """See `Task`."""
        return [self._make(part.length, self.grid.seed + part.sample)]

    def ask(self, question: Conversation, reading: Reading, client: Client) -> Outcome:
        """See `Task`."""
        space = uuid.uuid4().hex
        places = range(len(question.turns))
        warm = [_say(question, nth, reading, client, space) for nth in places]
        replies = [reply for reply, _ in warm]
        turns = list(zip(question.turns, replies, strict=True))
        likeness = [alike(reply.text.strip(), turn.answer.strip()) for turn, reply in turns]
        detail: dict[str, Any] = {
            "along": {
                "alike": likeness,
                "prompt tokens": [reply.prompt_tokens for reply in replies],
                "cached tokens": [reply.cached_tokens for reply in replies],
                "seconds": [seconds for _, seconds in warm],
            },
        }
        if self.grid.cold:
            again = places[-self.grid.cold :]
            detail["as cold"] = sum(
                _same(replies[nth], _say(question, nth, reading, client, uuid.uuid4().hex)[0])
                for nth in again
            ) / len(again)
        return Outcome(
            metric="alike",
            value=sum(likeness) / len(likeness),
            expected=tuple(turn.answer for turn in question.turns),
            said="\n".join(reply.text for reply in replies),
            prompt_tokens=replies[-1].prompt_tokens,
            cached_tokens=replies[-1].cached_tokens,
            report={name: sum(reply.report[name] for reply in replies) for name in COUNTED},
            detail=detail,
        )


def _say(
    question: Conversation, nth: int, reading: Reading, client: Client, space: str
) -> tuple[Reply, float]:
    """One turn's answer and its seconds; only its prompt is left in the cache.

    Keys that sparse decode made are not those of prefill: a turn that found them would not be one
    that is asked cold.
    """
    turn, start = question.turns[nth], time.monotonic()
    sampling: dict[str, Any] = {"max_new_tokens": turn.most, "temperature": 0}
    if turn.stop:
        sampling["stop"] = list(turn.stop)
    options = {**reading.options(), "share_generated": False}
    sampling["custom_params"] = {"sparsekv": options}
    body = {"text": question.prompt(nth), "sampling_params": sampling, "extra_key": space}
    reply = client.generate(body)
    return reply, round(time.monotonic() - start, 3)


def _same(reply: Reply, other: Reply) -> float:
    """Share of an answer's tokens that the other has too, up to the first difference."""
    a, b = reply.output_ids, other.output_ids
    pairs = zip(a, b, strict=False)
    same = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
    return same / max(len(a), len(b), 1)
