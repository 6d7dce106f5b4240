"""The prompts of a request: how many, and whether their token ids are the model's."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from .fields import MOST_SAMPLES
from .front_end import FrontEnd
from .rules import short

MOST_SEQUENCES = 1 << 16
"""Samples of all prompts of a request that asks for several of each."""


def is_batch(request: Any) -> bool:
    """Whether a request carries a list of prompts."""
    if request.text is not None:
        return not isinstance(request.text, str)
    if request.input_ids is not None:
        return bool(request.input_ids) and isinstance(request.input_ids[0], (list, tuple))
    embeds = request.input_embeds
    return bool(embeds) and bool(embeds[0]) and isinstance(embeds[0][0], (list, tuple))


def prompts_in(request: Any) -> int:
    """How many prompts a request has.

    Raises:
        ValueError: they are no prompts, none, or too many for the samples it asks of each.
    """
    if not is_batch(request):
        return 1
    given = request.text
    if given is None:
        given = request.input_ids if request.input_ids is not None else request.input_embeds
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"prompts must be a list of at least one, got {short(given)}")
    params = request.sampling_params
    first = params[0] if isinstance(params, (list, tuple)) and params else params
    samples = first.get("n", 1) if isinstance(first, dict) else 1
    wide = isinstance(samples, int) and 1 < samples <= MOST_SAMPLES
    if wide and samples * len(given) > MOST_SEQUENCES:
        raise ValueError(
            f"n must be at most {MOST_SEQUENCES // len(given)} for {len(given)} prompts, "
            f"got {samples}"
        )
    return len(given)


def check_token_ids(
    name: str, ids: object, front_end: FrontEnd, media: Sequence[object] = ()
) -> None:
    """Check the token ids of one prompt `[n]`, or of a batch of prompts.

    Args:
        name: what the ids are called in the request.
        ids: the ids.
        front_end: knows the vocabulary.
        media: images, videos and audio of the request, each one value or one per prompt. On a
            multimodal model the ids beside them may be placeholders and are left alone.

    Raises:
        ValueError: names the position and the value of the first id that is not in the vocabulary.
    """
    if not isinstance(ids, (list, tuple)) or not ids:
        return
    media = media if front_end.multimodal else ()
    if not isinstance(ids[0], (list, tuple)):
        if not any(media):
            _check_prompt(name, ids, front_end.vocab_size)
        return
    seen: set[int] = set()  # parallel sampling repeats the same list
    for item, prompt in enumerate(ids):
        if not isinstance(prompt, (list, tuple)):
            raise ValueError(f"{name}[{item}] must be a list of token ids, got {short(prompt)}")
        if id(prompt) not in seen and not _beside(media, item):
            seen.add(id(prompt))
            _check_prompt(f"{name}[{item}]", prompt, front_end.vocab_size)


def _check_prompt(name: str, ids: Sequence[object], vocab_size: int) -> None:
    bad = _first_outside(ids, vocab_size)
    if bad is not None:
        position, value = bad
        raise ValueError(
            f"{name}[{position}] must be a token id in [0, {vocab_size}), got {short(value)}"
        )


def _first_outside(ids: Sequence[Any], vocab_size: int) -> tuple[int, object] | None:
    """Position and value of the first id outside [0, vocab_size)."""
    if not ids:
        return None
    try:
        values = np.frombuffer(array("q", ids), dtype=np.uint64)
    except (TypeError, OverflowError):
        # Not 64-bit integers: the slow way finds the culprit.
        return next(
            (
                (position, value)
                for position, value in enumerate(ids)
                if not isinstance(value, int) or not 0 <= value < vocab_size
            ),
            None,
        )
    # Read as unsigned, a negative id is a huge one.
    if values.max() < vocab_size:
        return None
    position = int((values >= vocab_size).argmax())
    return position, ids[position]


def _beside(media: Sequence[object], item: int) -> bool:
    """Whether prompt `item` of a batch has any media; SGLang fills lists with None."""
    for values in media:
        if not isinstance(values, list):
            if values:
                return True
        elif item < len(values) and values[item]:
            return True
    return False
