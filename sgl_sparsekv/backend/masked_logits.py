"""A grammar that a vocabulary cannot spell masks every token; sampling needs a distribution.

SGLang would take the softmax of nothing, and its NaN end the scheduler once `top_k`, `top_p` or
`min_p` is asked for. Equal logits in its place draw some token, which the grammar then refuses:
that ends the one request and not the server.
"""

from typing import Any

import torch

from .request_table import active_table


def keep_a_distribution(result: object, sampling_info: Any, logits: torch.Tensor) -> None:
    """After `SamplingBatchInfo.apply_logits_bias`: all-masked rows of `[rows, vocab]` are 0."""
    if active_table() is not None and sampling_info.grammar_mask is not None:
        masked = logits.amax(dim=-1, keepdim=True) == float("-inf")
        logits.masked_fill_(masked, 0.0)
