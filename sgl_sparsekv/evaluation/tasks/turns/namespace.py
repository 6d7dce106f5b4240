"""Where a conversation takes place: a namespace of the radix cache that nobody else has."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from ...client import Client, Reply
from ...settings import Reading
from ...tokens import Tokens
from ..comparing import LIKELIEST, divergence, split
from ..following import Note, follow
from .conversation import Conversation


class Namespace:
    """One conversation in one way of reading; only its prompts are left in the cache.

    Keys that sparse decode made are not those of prefill: a turn that found them would not be one
    that is asked cold.
    """

    def __init__(
        self, tokens: Tokens, conversation: Conversation, reading: Reading, client: Client
    ) -> None:
        """Take a new one; `reading` keeps what it generates."""
        self._tokens, self._conversation = tokens, conversation
        self._reading, self._client = reading, client
        self._space = uuid.uuid4().hex

    def say(self, nth: int) -> tuple[Reply, float]:
        """A turn's answer, and its seconds."""
        turn, start = self._conversation.turns[nth], time.monotonic()
        sampling: dict[str, Any] = {"max_new_tokens": turn.most, "temperature": 0}
        if turn.stop:
            sampling["stop"] = list(turn.stop)
        sampling["custom_params"] = {"sparsekv": self._reading.options()}
        body = {"text": self._conversation.prompt(nth), "sampling_params": sampling}
        reply = self._client.generate({**body, "extra_key": self._space})
        return reply, round(time.monotonic() - start, 3)

    def compare(self, warm: Mapping[int, Reply]) -> dict[str, float]:
        """Turns asked here beside the same ones asked with nothing in the cache.

        Returns:
            `as cold`: share of an answer's tokens that come cold too, up to the first difference;
            `KL of cold`: divergence along the right answer, nats. Means; nothing for no turns.
        """
        same, nats = list[float](), list[float]()
        for nth, reply in warm.items():
            other = Namespace(self._tokens, self._conversation, self._reading, self._client)
            same.append(_same(reply, other.say(nth)[0]))
            cold = other.follow(nth, None)
            pairs = zip(cold, self.follow(nth, cold), strict=True)
            nats.append(sum(divergence(a, b) for a, b in pairs) / max(len(cold), 1))
        if not same:
            return {}
        return {"as cold": sum(same) / len(same), "KL of cold": sum(nats) / len(nats)}

    def follow(self, nth: int, others: list[Note] | None) -> list[Note]:
        """What a turn thinks of the right answer, of tokens that others watched or its own best."""
        turn = self._conversation.turns[nth]
        ids, text = split(self._tokens, self._conversation.prompt(nth), turn.answer)
        watched = None if others is None else [[text[0]], *(note.ids for note in others)]
        return follow(
            self._client, self._reading, ids, text, watched or LIKELIEST, space=self._space
        )[0]


def _same(reply: Reply, other: Reply) -> float:
    """Share of an answer's tokens that the other has too, up to the first difference."""
    a, b = reply.output_ids, other.output_ids
    pairs = zip(a, b, strict=False)
    same = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
    return same / max(len(a), len(b), 1)
