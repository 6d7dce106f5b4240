"""`shadowkv`: rank chunks of 8 tokens by their mean key; those it fits badly are always read.

ShadowKV, arXiv 2410.21465, section 4.2 and algorithm 1: landmark = mean rotated key of a chunk,
outliers = the chunks with the lowest cosine between landmark and member. How badly a landmark fits
is a function of the chunk alone, so it is stored with the page and the outliers are the worst of
the whole context, as in the paper. Differences: outliers take their share out of the budget (the
paper's 48 chunks at 2,048 tokens come on top of it); the softmax runs over all candidates, outliers
included; generated tokens are ranked like any others. Low-rank keys and values kept on the host are
left out: they save memory, not reads, and the low-rank basis does not carry over between sequences.
"""

import torch

from ..ops import Ops
from ..segments.landmarks import CHUNK, landmarks, worst_cosines
from ..summaries import PageSummary
from ..types import ScoreInputs
from .base import SelectionMethod

OUTLIER_SHARE = 48 * 8 / (2048 + 48 * 8)
"""Part of the budget that outliers take: the paper's setting."""
ALWAYS = torch.finfo(torch.float32).max
"""Score of an outlier."""


def chunk_means(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[n, 8, H, D]` -> landmarks `[n, H, 1, D]`; what is no finite number counts as zero."""
    return landmarks(_finite(keys).flatten(0, 1), keys.shape[1])[:, :, None]


def misfits(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[n, 8, H, D]` -> 1 - the lowest cosine with the landmark, `[n, H, 1, 1]`."""
    flat = _finite(keys).flatten(0, 1)
    worst = worst_cosines(flat, landmarks(flat, keys.shape[1]))
    return (1 - worst).movedim(1, 0)[:, :, None, None].to(keys.dtype)


def _finite(keys: torch.Tensor) -> torch.Tensor:
    return keys.nan_to_num(0.0, 0.0, 0.0)


def mean_product(q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """q `[..., G, D]`, planes `[..., u, 1, D]` -> q·mean `[..., G, u]`."""
    return q @ planes[..., 0, :].mT


LANDMARK = PageSummary("landmark", ("mean",), chunk_means, mean_product, ulps=4, tokens=CHUNK)
MISFIT = PageSummary("misfit", ("misfit",), misfits, None, ulps=8, tokens=CHUNK, width=1)


class ShadowKV(SelectionMethod):
    """Landmark ranking, outliers first."""

    name = "shadowkv"
    citation = "ShadowKV, arXiv 2410.21465"
    summaries = (LANDMARK, MISFIT)
    unit_size = CHUNK
    formula = "landmark"

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        candidates = inputs.candidates
        scores = ops.score(
            LANDMARK,
            inputs.q,
            inputs.fields[LANDMARK.name],
            candidates,
            inputs.scale,
            inputs.reduction,
        )
        table = candidates.unit_table.long()
        misfit = inputs.fields[MISFIT.name][..., 0, 0][table].movedim(2, 1).float()  # [rows, H, U]
        unit = torch.arange(table.shape[1], device=table.device)
        outside = (unit < candidates.begin[:, None]) | (unit >= candidates.end[:, None])
        misfit = misfit.masked_fill(outside[:, None], -torch.inf).contiguous()
        always = inputs.num_units - (candidates.end - candidates.begin).clamp(min=0)
        quota = (inputs.counts * OUTLIER_SHARE).int().minimum(inputs.counts - always)
        chosen = ops.select(misfit, candidates, inputs.num_units, always + quota.clamp(min=0))
        # Sinks and window are among them; they are kept whatever they score.
        places = chosen.logical.long()
        places = torch.where(places < 0, places[..., :1], places)
        return scores.scatter_(-1, places, ALWAYS) if places.shape[-1] else scores
