"""`kvcompress`: one budget over all layers and KV heads of a request, given up block by block.

KV-Compress, arXiv 2410.00161, sections 3 and 4: squared attention of the last queries, max-pooled,
summed over the query heads of a KV head; queries of the answer add theirs. Differences from the
paper: sinks are kept, and the last block goes in part, so that the budget is met exactly. With
tensor parallelism the heads of a rank share among themselves.
"""

from collections.abc import Sequence

import torch

from .apportion import blocks_of_a_request
from .view import Room, ViewMethod, spread


class KVCompress(ViewMethod):
    """A budget per request."""

    name = "kvcompress"
    citation = "KV-Compress, arXiv 2410.00161"
    accumulates = True

    def weigh(self, shares: torch.Tensor, pooling: int) -> torch.Tensor:
        """See `ViewMethod.weigh`."""
        return spread(shares.square().sum(-2), pooling).sum(-2)

    def divide(self, scores: Sequence[torch.Tensor], room: Room) -> torch.Tensor:
        """See `ViewMethod.divide`."""
        total = room.tokens * sum(layer.shape[0] for layer in scores)
        return blocks_of_a_request(scores, room.always, total, room.block)
