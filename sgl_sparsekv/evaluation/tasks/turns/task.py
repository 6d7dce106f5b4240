"""Conversations: each turn finds the ones before it in the radix cache, the first one nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...client import Client
from ...settings import Reading
from ...tokens import Tokens
from ..base import Outcome, Part
from ..likeness import alike
from .conversation import Conversation
from .namespace import Namespace

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
    apart = True

    def __init__(
        self,
        tokens: Tokens,
        make: Callable[[int, int], Conversation],
        grid: Grid,
        about: dict[str, Any],
    ) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            make: a conversation from its length and its seed.
            grid: what is asked.
            about: what else decides the conversations, for the header of the results.
        """
        self._tokens, self._make, self.grid, self._about = tokens, make, grid, about

    @property
    def forces(self) -> bool:
        """See `Task`; warm and cold are compared along the right answer."""
        return self.grid.cold > 0

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
        space = Namespace(self._tokens, question, replace(reading, keeps=True), client)
        warm = [space.say(nth) for nth in range(len(question.turns))]
        replies = [reply for reply, _ in warm]
        turns = list(zip(question.turns, replies, strict=True))
        likeness = [alike(reply.text.strip(), turn.answer.strip()) for turn, reply in turns]
        along = {
            "alike": likeness,
            "prompt tokens": [reply.prompt_tokens for reply in replies],
            "cached tokens": [reply.cached_tokens for reply in replies],
            "seconds": [seconds for _, seconds in warm],
        }
        last = range(len(turns) - self.grid.cold, len(turns))
        return Outcome(
            metric="alike",
            value=sum(likeness) / len(likeness),
            expected=tuple(turn.answer for turn in question.turns),
            said="\n".join(reply.text for reply in replies),
            prompt_tokens=replies[-1].prompt_tokens,
            cached_tokens=replies[-1].cached_tokens,
            report={name: sum(reply.report[name] for reply in replies) for name in COUNTED},
            detail={"along": along, **space.compare({nth: replies[nth] for nth in last})},
        )
