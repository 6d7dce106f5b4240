"""A grammar that no tokens of the model can spell ends its request, and that with a 400.

It masks every token. SGLang would take the softmax of nothing, and its NaN end the scheduler once
`top_k`, `top_p` or `min_p` is asked for. Equal logits in its place draw some token, which the
grammar then refuses: SGLang calls that an error of the server, and it is one of the request.
"""

from http import HTTPStatus
from typing import Any

import torch

from ..serving.rules import short
from .request_table import active_table

GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
"""Sampling parameters of which a request has at most one."""


def keep_a_distribution(result: object, sampling_info: Any, logits: torch.Tensor) -> None:
    """After `SamplingBatchInfo.apply_logits_bias`: all-masked rows of `[rows, vocab]` are 0."""
    if active_table() is not None and sampling_info.grammar_mask is not None:
        masked = logits.amax(dim=-1, keepdim=True) == float("-inf")
        logits.masked_fill_(masked, 0.0)


def refuse_at_once(scheduler: object, req: Any, *args: object, **kwargs: object) -> None:
    """Before `Scheduler._add_request_to_queue`: no token can begin the answer."""
    if active_table() is None or req.grammar is None or req.to_finish is not None:
        return
    if not req.output_ids and _named(req) and not _allows(req):
        req.set_finish_with_abort(_told(req))


def refuse_underway(
    result: object, processor: object, req: Any, *args: object, **kwargs: object
) -> None:
    """After a grammar was told of a token: the request is at fault where it allowed none.

    SGLang's reason stays where the grammar refused a token although it allowed others.
    """
    reason = req.to_finish
    if active_table() is None or getattr(reason, "status_code", None) != 500:
        return
    if _named(req) and not _allows(req):
        reason.message = _told(req)
        reason.status_code, reason.err_type = HTTPStatus.BAD_REQUEST, "BadRequestError"


def _named(req: Any) -> str | None:
    """The sampling parameter that holds the grammar; none where SGLang made it."""
    return next((n for n in GRAMMARS if getattr(req.sampling_params, n) is not None), None)


def _told(req: Any) -> str:
    name = _named(req)
    assert name is not None
    told = short(getattr(req.sampling_params, name))
    return f"{name} must be what tokens of the model can spell, got {told}"


def _allows(req: Any) -> bool:
    """Whether a request's grammar lets any token follow."""
    logits = torch.zeros(1, req.vocab_size)
    mask = req.grammar.allocate_vocab_mask(req.vocab_size, 1, "cpu")
    req.grammar.fill_vocab_mask(mask, 0)
    req.grammar.apply_vocab_mask(logits, mask)
    return bool(logits.isfinite().any())
