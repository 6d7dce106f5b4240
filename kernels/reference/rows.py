"""Candidates of rows, and from query heads to scores."""

import torch

from sgl_sparsekv.types import Candidates, Reduction


def unit_rows(keys: torch.Tensor, units: torch.Tensor, unit_size: int) -> torch.Tensor:
    """Rows of whole units: keys `[slots, H, D]`, units `[m]` -> `[m, unit_size, H, D]`."""
    return keys.unflatten(0, (-1, unit_size))[units]


def candidate_spans(candidates: Candidates) -> list[tuple[int, int, int]]:
    """(row, begin, end) of every row that has candidates."""
    spans = zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
    return [(row, begin, end) for row, (begin, end) in enumerate(spans) if begin < end]


def known_of(known: torch.Tensor | None, row: int) -> torch.Tensor | None:
    """What is known of one row, `[H, G]`."""
    return None if known is None else known[row]


def reduce_group(
    scores: torch.Tensor, reduction: Reduction, known: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled scores `[H, G, u]` -> `[H, u]`: log of the max or mean softmax over the group.

    `known` `[H, G]` joins the softmax.
    """
    lse = scores.logsumexp(-1)
    if known is not None:
        lse = torch.logaddexp(lse, known)
    return reduce_shares(scores, lse, reduction)


def reduce_shares(scores: torch.Tensor, lse: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """As `reduce_group`, by the log-sum-exp `[H, G]` of the whole."""
    if reduction is Reduction.MAX:
        return scores.amax(1)
    log_share = scores - lse[..., None]
    if reduction is Reduction.MAX_SOFTMAX:
        return log_share.amax(1)
    return log_share.logsumexp(1) - torch.tensor(float(scores.shape[1])).log()
