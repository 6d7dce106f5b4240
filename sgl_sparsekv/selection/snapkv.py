"""`snapkv`: keep what the last queries of the prompt attend to, with its neighbours.

SnapKV, arXiv 2404.14469, section 4: attention of an observation window, summed over its queries,
max-pooled along the prompt. Differences from the paper: the query heads of a KV head share one
view (the mean of their sums, before the pooling, which needs a G-th of the memory), sinks are kept,
and the view is made anew as the answer grows.
"""

import torch

from .view import ViewMethod, spread


class SnapKV(ViewMethod):
    """The same number of tokens for every KV head of every layer."""

    name = "snapkv"
    citation = "SnapKV, arXiv 2404.14469"

    def weigh(self, shares: torch.Tensor, pooling: int) -> torch.Tensor:
        """See `ViewMethod.weigh`."""
        return spread(shares.sum(-2).mean(-2), pooling)
