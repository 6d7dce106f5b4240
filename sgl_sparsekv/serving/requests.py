"""Refuse requests that ask for what cannot be served; SGLang turns a ValueError into a 400.

Every route, and `sgl.Engine` beside them, hands its requests to the tokenizer manager. Here they
are checked before anything is made of them, and once more when the prompt's tokens are known.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from ..config import REQUEST_KEY, ServerOptions, parse_request_options
from .fields import MEDIA, REQUEST, SAMPLING, fits_model
from .front_end import FrontEnd, front_end_of
from .prompts import check_token_ids, is_batch, prompts_in
from .rules import Limits, short


def check_request(manager: object, request: Any, *args: Any, **kwargs: Any) -> None:
    """Before `TokenizerManager.generate_request`: every field of a request.

    Raises:
        RequestOptionError: one of our options is wrong.
        ValueError: a field breaks its rule.
    """
    front_end = front_end_of(manager)
    if front_end is None:
        return
    with _counted(front_end), _known_to_be_over(request):
        check_options(request.sampling_params, front_end.options)
        if not front_end.options.validate_requests:
            return
        prompts = prompts_in(request)
        check_fields(request, prompts if is_batch(request) else None, front_end.limits)
        check_sampling(request.sampling_params, prompts, is_batch(request), front_end.limits)
        media = [getattr(request, name) for name in MEDIA]
        check_token_ids("input_ids", request.input_ids, front_end, media)
        _check_names(request)
        _check_one_prompt(request)


def _check_one_prompt(request: Any) -> None:
    """One text makes a request single, whatever its token ids are.

    Raises:
        ValueError: they are several prompts.
    """
    ids = request.input_ids
    if isinstance(request.text, str) and ids and isinstance(ids[0], list):
        raise ValueError(f"input_ids must be one list of ids beside one text, got {len(ids)} lists")


def _check_names(request: Any) -> None:
    """A request that embeds or classifies several texts asserts a name for each of them.

    Raises:
        ValueError: they share one.
    """
    generates = hasattr(request, "stream")
    if not generates and is_batch(request) and isinstance(request.rid, str):
        raise ValueError(f"rid must be a list, one for each prompt, got {request.rid[:60]!r}")


def check_score(
    manager: object,
    *args: Any,
    query_embed_overrides: Any = None,
    item_embed_overrides: Any = None,
    **kwargs: Any,
) -> None:
    """Before `TokenizerManagerScoreMixin.score_request`: the embeddings that it stacks.

    Raises:
        ValueError: one has not the model's size, or is not finite.
    """
    front_end = front_end_of(manager)
    if front_end is None or not front_end.options.validate_requests:
        return
    limits = front_end.limits
    given = {"query_embed_overrides": [query_embed_overrides or ()]}
    given["item_embed_overrides"] = [rows or () for rows in item_embed_overrides or ()]
    with _counted(front_end):
        for name, groups in given.items():
            for row in (row for group in groups for row in group):
                if not fits_model(row, limits):
                    raise ValueError(
                        f"{name} must be rows of {limits.hidden_size} finite numbers, "
                        f"got one of shape {list(row.shape)}"
                    )


def check_tokenized(
    result: object, manager: object, request: Any, input_ids: Sequence[int] | None
) -> None:
    """After `TokenizerManager._validate_one_request`: what only the prompt's length can tell.

    Raises:
        ValueError: there is no token, or a position lies outside the prompt: SGLang ends on both.
    """
    front_end = front_end_of(manager)
    if front_end is None or not front_end.options.validate_requests or input_ids is None:
        return
    with _counted(front_end):
        embeds = getattr(request, "input_embeds", None)
        media = front_end.multimodal and any(getattr(request, name, None) for name in MEDIA)
        if not len(input_ids) and embeds is None and not media and not _in_session(request):
            raise ValueError("prompt must have at least one token, got none")
        for name in ("multi_item_delimiter_indices", "token_indices_to_pool"):
            for position in getattr(request, name, None) or ():
                if position >= len(input_ids):
                    raise ValueError(
                        f"{name} must be positions in the prompt, below {len(input_ids)}, "
                        f"got {position}"
                    )


def check_options(sampling_params: object, options: ServerOptions) -> None:
    """Check our options in one request's sampling parameters, or in a list of them.

    Raises:
        RequestOptionError: the message starts with the number of the item in a batch.
    """
    for prefix, params in _each(sampling_params):
        try:
            check_custom_params(params.get("custom_params"), options)
        except ValueError as error:
            raise type(error)(f"{prefix}{error}") from None


def check_custom_params(custom_params: object, options: ServerOptions) -> None:
    """Check `custom_params["sparsekv"]`, if there is one."""
    if isinstance(custom_params, dict) and REQUEST_KEY in custom_params:
        parse_request_options(custom_params[REQUEST_KEY], options)


def check_sampling(sampling_params: object, prompts: int, batch: bool, limits: Limits) -> None:
    """Check one request's sampling parameters, or a list with those of each prompt.

    Raises:
        ValueError: names the field, the rule and the value.
    """
    if sampling_params is None:
        return
    if isinstance(sampling_params, list):
        if not batch or len(sampling_params) != prompts:
            wanted = f"an object, or a list of {prompts}" if batch else "an object"
            raise ValueError(
                f"sampling_params must be {wanted}, got a list of {len(sampling_params)}"
            )
        strays = [entry for entry in sampling_params if not isinstance(entry, dict)]
    else:
        strays = [] if isinstance(sampling_params, dict) else [sampling_params]
    if strays:
        raise ValueError(f"sampling_params must be an object, got {short(strays[0])}")
    for prefix, params in _each(sampling_params):
        for name, value in params.items():
            if name not in SAMPLING:
                raise ValueError(f"{prefix}sampling_params.{short(name)} is not a parameter")
            SAMPLING[name].check(f"{prefix}{name}", value, limits)


def check_fields(request: Any, prompts: int | None, limits: Limits) -> None:
    """Check the fields of a request that stand beside its sampling parameters.

    Args:
        request: SGLang's dataclass.
        prompts: how many a batch has; None: it is no batch.
        limits: of the server.

    Raises:
        ValueError: names the field, the rule and the value.
    """
    for entry in fields(request):
        rule, value = REQUEST[entry.name], getattr(request, entry.name)
        if value is None or value is entry.default:
            continue
        if entry.name in MEDIA and isinstance(value, list) and prompts and value:
            _check_length(entry.name, value, prompts)
        if not rule.each or prompts is None or not isinstance(value, list):
            rule.check(entry.name, value, limits)
        elif value and not (entry.name in _LISTS and not isinstance(value[0], list | None)):
            _check_length(entry.name, value, prompts)
            for item, own in enumerate(value):
                rule.check(f"{entry.name}[{item}]", own, limits)
        else:
            rule.check(entry.name, value, limits)


_LISTS = (
    *("token_ids_logprob", "multi_item_delimiter_indices", "token_indices_to_pool"),
    *("embed_overrides", "decision_layout"),
)
"""Fields whose value for one prompt is a list itself."""


def _check_length(name: str, value: Sequence[object], prompts: int) -> None:
    if len(value) != prompts:
        raise ValueError(f"{name} must have one entry per prompt ({prompts}), got {len(value)}")


def _each(sampling_params: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Dictionaries of sampling parameters, each once, with what a message about it starts with."""
    if isinstance(sampling_params, dict):
        yield "", sampling_params
    elif isinstance(sampling_params, (list, tuple)):
        seen: set[int] = set()  # SGLang repeats one dict for every item that shares it
        for item, params in enumerate(sampling_params):
            if isinstance(params, dict) and id(params) not in seen:
                seen.add(id(params))
                yield f"request {item} of the batch: ", params


def _in_session(request: Any) -> bool:
    """Whether earlier turns of a session may bring the tokens."""
    return bool(getattr(request, "session_params", None))


@contextmanager
def _known_to_be_over(request: Any) -> Iterator[None]:
    """Two seconds behind every stream SGLang asks what of its request still runs.

    That ends the connection if the request was refused before it was known to be one or many.
    """
    request.is_single = not isinstance(request.rid, list)
    try:
        yield
    except ValueError:
        request.is_single, request.rid = True, None
        raise


@contextmanager
def _counted(front_end: FrontEnd) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        front_end.count_refusal(str(error))
        raise
