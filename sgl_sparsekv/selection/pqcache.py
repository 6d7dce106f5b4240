"""`pqcache`: rank tokens by product-quantised keys.

PQCache, arXiv 2407.12820: a key is cut into m sub-vectors, each replaced by the nearest of 2^b
centroids, so q·k is a sum of m table entries; the best tokens are read. Differences from the
paper: a codebook belongs to a segment at an absolute position and not to a prompt, so it is shared
with the prefix and generated tokens get codes in the same way; tokens behind the last whole segment
are ranked by their own keys; the budget is in tokens and not a share of the prompt.
"""

from ..segments.index import products
from ..summaries import CodeSummary
from .base import IndexOptions
from .coded import CodedMethod


class PQCache(CodedMethod):
    """Token ranking by table look-up."""

    name = "pqcache"
    citation = "PQCache, arXiv 2407.12820"
    formula = "products"
    tells_shares = True

    def segments(self, options: IndexOptions) -> CodeSummary:
        """See `SelectionMethod.segments`."""
        return products(options.pq_segment, options.pq_subspaces, options.pq_bits)
