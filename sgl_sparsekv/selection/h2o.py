"""`h2o`: keep what has been attended to most, summed over queries as the answer grows.

H2O, arXiv 2306.14048, section 4: heavy hitters by accumulated attention. Differences from the
paper: what the prompt's queries attended to is summed over its last ones only
(`observation_window`), as those of a shared prefix are not there any more; the query heads of a KV
head share one view; a view gives up tokens every `renew_every` tokens, not one in every step.
"""

import torch

from .view import ViewMethod


class H2O(ViewMethod):
    """Sums go on from view to view."""

    name = "h2o"
    citation = "H2O, arXiv 2306.14048"
    accumulates = True

    def weigh(self, shares: torch.Tensor, pooling: int) -> torch.Tensor:
        """See `ViewMethod.weigh`; nothing is pooled."""
        return shares.sum(-2).mean(-2)
