"""`clusterkv`: read clusters of similar keys, best centroid first.

ClusterKV, arXiv 2412.03213: keys are clustered by cosine, clusters are ranked by q·centroid, and
their members are read in this order; the last cluster is cut so that the budget is met exactly. A
token's score here is its cluster's and ties go to the lower position, so choosing tokens is the
same thing. Differences from the paper: segments of a fixed size at absolute positions in place of
the prompt, so that clusters belong to the shared prefix and generated text gets its own in the
same way; the selection is shared by the query heads of a KV head; tokens behind the last whole
segment are ranked by their own keys.
"""

from ..segments.index import clusters
from ..summaries import CodeSummary
from .base import IndexOptions
from .coded import CodedMethod


class ClusterKV(CodedMethod):
    """Cluster ranking, token by token."""

    name = "clusterkv"
    citation = "ClusterKV, arXiv 2412.03213"
    formula = "clusters"
    tells_shares = True

    def segments(self, options: IndexOptions) -> CodeSummary:
        """See `SelectionMethod.segments`."""
        return clusters(options.cluster_segment, options.tokens_per_centroid)
