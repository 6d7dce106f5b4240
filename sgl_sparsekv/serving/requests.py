"""Refuse requests that ask for what cannot be served; SGLang turns a ValueError into a 400."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import REQUEST_KEY, ServerOptions, parse_request_options
from .front_end import FrontEnd, active


def verify_sampling_params(result: object, params: Any, vocab_size: int) -> None:
    """After `SamplingParams.verify`: check our options and the stop tokens of one request.

    Raises:
        RequestOptionError: an option is wrong.
        ValueError: a stop token is outside the vocabulary.
    """
    front_end = active()
    if front_end is None:
        return
    try:
        check_custom_params(params.custom_params, front_end.options)
        if front_end.options.validate_input_ids:
            check_stop_tokens(params.stop_token_ids, vocab_size)
    except ValueError as error:
        front_end.count_refusal(str(error))
        raise


def check_generate_request(result: object, request: Any) -> None:
    """After `GenerateReqInput.normalize_batch_and_arguments`: the whole batch, items by number.

    Raises:
        RequestOptionError: an option is wrong.
        ValueError: a token id is outside the vocabulary, or more log-probabilities are asked for
            than it has tokens.
    """
    front_end = active()
    if front_end is None:
        return
    try:
        check_options(request.sampling_params, front_end.options)
        check_token_ids("input_ids", request.input_ids, front_end, _media_of(request))
        check_top_logprobs(request.top_logprobs_num, front_end)
    except ValueError as error:
        front_end.count_refusal(str(error))
        raise


def check_tokenized(
    result: object, manager: object, request: Any, input_ids: Sequence[int] | None
) -> None:
    """After `TokenizerManager._validate_one_request`: a prompt without tokens ends SGLang.

    Whether a text gives any is known only here.

    Raises:
        ValueError: there is none.
    """
    front_end = active()
    if front_end is None or not front_end.options.validate_input_ids:
        return
    if input_ids is None or len(input_ids) or getattr(request, "input_embeds", None) is not None:
        return
    if not front_end.multimodal or not any(_media_of(request)):
        message = "prompt must have at least one token, got none"
        front_end.count_refusal(message)
        raise ValueError(message)


def check_options(sampling_params: object, options: ServerOptions) -> None:
    """Check the options in one request's sampling parameters, or in a list of them.

    Raises:
        RequestOptionError: the message starts with the number of the item in a batch.
    """
    if isinstance(sampling_params, dict):
        check_custom_params(sampling_params.get("custom_params"), options)
    elif isinstance(sampling_params, (list, tuple)):
        seen: set[int] = set()  # SGLang repeats one dict for every item that shares it
        for item, params in enumerate(sampling_params):
            if not isinstance(params, dict) or id(params) in seen:
                continue
            seen.add(id(params))
            try:
                check_custom_params(params.get("custom_params"), options)
            except ValueError as error:
                raise type(error)(f"request {item} of the batch: {error}") from None


def check_custom_params(custom_params: object, options: ServerOptions) -> None:
    """Check `custom_params["sparsekv"]`, if there is one."""
    if isinstance(custom_params, dict) and REQUEST_KEY in custom_params:
        parse_request_options(custom_params[REQUEST_KEY], options)


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
    if not front_end.options.validate_input_ids or not isinstance(ids, list) or not ids:
        return
    media = media if front_end.multimodal else ()
    if not isinstance(ids[0], list):
        if not any(media):
            _check_prompt(name, ids, front_end.vocab_size)
        return
    seen: set[int] = set()  # parallel sampling repeats the same list
    for item, prompt in enumerate(ids):
        if isinstance(prompt, list) and id(prompt) not in seen and not _beside(media, item):
            seen.add(id(prompt))
            _check_prompt(f"{name}[{item}]", prompt, front_end.vocab_size)


def check_top_logprobs(number: object, front_end: FrontEnd) -> None:
    """Check how many log-probabilities are asked for: SGLang ends on more than it has tokens.

    Raises:
        ValueError: one number, or one of a list of them, is out of range.
    """
    if not front_end.options.validate_input_ids:
        return
    for each in number if isinstance(number, list) else [number]:
        if isinstance(each, int) and not 0 <= each <= front_end.vocab_size:
            raise ValueError(
                f"top_logprobs_num must be an integer in [0, {front_end.vocab_size}], "
                f"got {_short(each)}"
            )


def check_stop_tokens(stop_token_ids: object, vocab_size: int) -> None:
    """Check stop tokens: SGLang indexes logits with them once any request has `min_new_tokens`.

    Raises:
        ValueError: a stop token is outside the vocabulary.
    """
    if not isinstance(stop_token_ids, (set, frozenset, list, tuple)):
        return
    for token in sorted(stop_token_ids):
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"stop_token_ids must be token ids in [0, {vocab_size}), got {_short(token)}"
            )


def _check_prompt(name: str, ids: Sequence[object], vocab_size: int) -> None:
    bad = _first_outside(ids, vocab_size)
    if bad is not None:
        position, value = bad
        raise ValueError(
            f"{name}[{position}] must be a token id in [0, {vocab_size}), got {_short(value)}"
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


def _media_of(request: Any) -> list[object]:
    return [getattr(request, f"{kind}_data", None) for kind in ("image", "video", "audio")]


def _beside(media: Sequence[object], item: int) -> bool:
    """Whether prompt `item` of a batch has any media; SGLang fills lists with None."""
    for values in media:
        if not isinstance(values, list):
            if values:
                return True
        elif item < len(values) and values[item]:
            return True
    return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
