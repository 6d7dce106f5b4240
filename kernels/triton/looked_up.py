"""Tokens of one segment as its clusters and codes say: which there are, and their logits.

Tokens stand in the order of a record, by cluster, so their codes are read as they lie. A key is its
cluster's centroid and, for each of its sub-vectors, one of 16 that are left; so its product with a
query is a sum of table entries.
"""

import triton
import triton.language as tl

from .clusters import CLUSTERS
from .codes import entries
from .primitives import padded


@triton.jit
def clusters_of(ends, i):
    """Cluster of each place `i` in the order of a record."""
    c = tl.arange(0, CLUSTERS)
    end = tl.load(ends + c).to(tl.int32)
    return tl.sum((i[None, :] >= end[:, None]).to(tl.int32), 0)


@triton.jit
def centroid_logits(logits, segment, width, GROUP: tl.constexpr):
    """Scaled q·centroid of a segment's clusters: `[16 or more, 16]`, 0 beyond GROUP."""
    g, c = tl.arange(0, padded(GROUP, 16)), tl.arange(0, CLUSTERS)
    where = logits + g[:, None] * width + segment * CLUSTERS + c[None, :]
    return tl.load(where, mask=(g < GROUP)[:, None], other=0.0)


@triton.jit
def code_table(q, codebook, scale, WIDTH: tl.constexpr):
    """q·codebook of a sub-vector, `[16 or more, 16]`: codebook int8 `[D / m, 16]`."""
    d, c = tl.arange(0, padded(WIDTH, 16)), tl.arange(0, CLUSTERS)
    rows = tl.load(
        codebook + d[:, None] * CLUSTERS + c[None, :], mask=(d < WIDTH)[:, None], other=0
    )
    return scale * tl.dot(q, rows.to(q.dtype), input_precision="ieee")


@triton.jit
def looked_up(
    parts, centroid, cluster, codes, codebooks, scales, i, scale,
    GROUP: tl.constexpr, DIM: tl.constexpr, SUBSPACES: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Scaled logits `[padded GROUP, tokens]` of places `i` of a record.

    Args:
        parts: as `load_parts` returns them.
        centroid: as `centroid_logits`; cluster: of each place.
        codes, codebooks: of the record; scales: of its codebooks.
    """
    WIDTH: tl.constexpr = DIM // SUBSPACES
    logit = entries(centroid, cluster, GROUP)
    for j in tl.static_range(SUBSPACES):
        both = tl.load(codes + (j // 2) * SEGMENT + i).to(tl.int32)
        step = scale * tl.load(scales + j)
        table = code_table(parts[j], codebooks + j * WIDTH * CLUSTERS, step, WIDTH)
        logit += entries(table, (both >> (j % 2 * 4)) & 15, GROUP)
    return logit
