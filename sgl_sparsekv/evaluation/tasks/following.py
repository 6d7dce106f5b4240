"""Text that decode is made to follow, and what the model thought of each of its tokens.

Prefill is dense, so likelihoods that it computes say nothing of sparse reading. Here every token of
the text is read by a decode step of its own (as in Quest's PG19 evaluation, arXiv 2406.10774
section 4). The first one is left out: prefill foretold it.
"""

from dataclasses import dataclass
from typing import Any

from ..client import Client, EvaluationStopped, Reply
from ..forced import FORCED, WATCHED, processor
from ..settings import Reading


@dataclass(frozen=True)
class Note:
    """What a decode step thought of the token it was made to say.

    Attributes:
        best: the token it would have said.
        log: log probability of the one it said, natural.
        ids: tokens that were watched.
        logs: their log probabilities.
    """

    best: int
    log: float
    ids: list[int]
    logs: list[float]


def follow(
    client: Client,
    reading: Reading | None,
    prompt: list[int],
    text: list[int],
    watched: int | list[list[int]],
    space: str | None = None,
) -> tuple[list[Note], Reply]:
    """Read a prompt, then decode along a text.

    Args:
        client: the server.
        reading: how decode reads; None for a server without our backend.
        prompt: token ids that prefill reads.
        text: token ids that decode must say, at least 2.
        watched: how many of the likeliest tokens to note per step, or which, per token of `text`.
        space: namespace of the radix cache; None for the one that all share.

    Returns:
        A note per token of `text` but the first, and the whole reply.

    Raises:
        EvaluationStopped: the server cannot go on, or said something else.
    """
    custom: dict[str, Any] = {FORCED: text, WATCHED: watched}
    if reading is not None:
        custom["sparsekv"] = reading.options()
    sampling = {"max_new_tokens": len(text), "temperature": 0, "ignore_eos": True}
    reply = client.generate(
        {
            "input_ids": prompt,
            "sampling_params": {**sampling, "custom_params": custom},
            "custom_logit_processor": processor(),
            **({} if space is None else {"extra_key": space}),
        }
    )
    if reply.output_ids != text or len(reply.notes) != len(text):
        raise EvaluationStopped("the server did not follow the text it was given")
    return [Note(*note) for note in reply.notes[1:]], reply
