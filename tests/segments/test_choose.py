"""Choosing clusters: exactly the budget, in order of score, over several segments."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segments import brute
from segments.data import bunches, noise

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.segments.choose import (
    JoinedIndex,
    cluster_scores,
    estimate,
    join,
    select_clusters,
)
from sgl_sparsekv.segments.clusters import ClusterIndex, build_clusters, value_sums

CASES = 1000
HEADS = 2


def random_index(draw: np.random.Generator, tokens: int, clusters: int, skip: int) -> ClusterIndex:
    """An index with any members, empty clusters too."""
    labels = draw.integers(0, clusters, (HEADS, tokens - skip))
    order = np.argsort(labels, axis=1, kind="stable") + skip
    order = np.concatenate((np.tile(np.arange(skip), (HEADS, 1)), order), 1)
    counts = np.stack([np.bincount(row, minlength=clusters) for row in labels])
    starts = np.pad(counts.cumsum(1), ((0, 0), (1, 0))) + skip
    return ClusterIndex(
        torch.zeros(HEADS, clusters, 1),
        torch.from_numpy(order).short(),
        torch.from_numpy(starts).int(),
    )


def greedy(scores: list[float], members: list[list[int]], budget: int) -> list[int]:
    """Best cluster first until the budget is full."""
    kept: list[int] = []
    for _, c in sorted((-score, c) for c, score in enumerate(scores)):
        kept += members[c][: budget - len(kept)]
    return sorted(kept)


def members_of(indices: list[ClusterIndex], begins: list[int], h: int) -> list[list[int]]:
    """Absolute positions of every cluster of a head, segment by segment."""
    found = []
    for index, begin in zip(indices, begins, strict=True):
        starts, order = index.starts[h].tolist(), index.order[h].tolist()
        found += [[begin + o for o in order[a:b]] for a, b in pairwise(starts)]
    return found


@settings(max_examples=CASES, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 6)), min_size=1, max_size=3),
    skip=st.integers(0, 8),
    budget=st.integers(0, 80),
)
def test_the_budget_is_met_exactly(
    seed: int, sizes: list[tuple[int, int]], skip: int, budget: int
) -> None:
    """As the greedy loop does, ties included: scores take four values only."""
    draw = np.random.default_rng(seed)
    skips = [min(skip, sizes[0][0] - 1)] + [0] * (len(sizes) - 1)
    indices = [random_index(draw, t, c, s) for (t, c), s in zip(sizes, skips, strict=True)]
    begins = np.cumsum([0, *(t for t, _ in sizes)])[:-1].tolist()
    joined = join(indices, begins)
    scores = draw.integers(0, 4, joined.sizes.shape).astype(np.float32)
    scores[draw.random(scores.shape) < 0.1] = -np.inf
    chosen = select_clusters(torch.from_numpy(scores), joined, budget)
    assert chosen.positions.shape[1] == min(budget, sum(t for t, _ in sizes) - skips[0])
    for h in range(HEADS):
        members = members_of(indices, begins, h)
        wanted = greedy(scores[h].tolist(), members, budget)
        assert chosen.positions[h].tolist() == wanted
        assert chosen.taken[h].tolist() == [len({*m} & {*wanted}) for m in members]


def test_scores_are_products_with_the_centroids() -> None:
    """Not cosines; an empty cluster scores nothing."""
    index = build_clusters(torch.cat((noise(20), noise(1).expand(20, -1, -1))), 1, 3, None)
    q = torch.randn(3, 4, 16)
    scores = cluster_scores(q, index)
    empty = (index.sizes == 0)[:, None].expand_as(scores)
    wanted = q.double() @ index.centroids.double().mT
    assert bool(empty.any()) and bool((scores[empty] == -torch.inf).all())
    torch.testing.assert_close(scores[~empty], wanted[~empty].float(), rtol=1e-5, atol=1e-5)


def test_a_score_that_is_no_number_stays_in_its_head() -> None:
    """It is read first; other heads choose as before."""
    index = join([build_clusters(noise(64), 8)], [0])
    scores = torch.randn(3, 8)
    clean = select_clusters(scores, index, 20)
    scores[1, 5] = torch.nan
    dirty = select_clusters(scores, index, 20)
    assert torch.equal(dirty.positions[[0, 2]], clean.positions[[0, 2]])
    assert int(dirty.taken[1, 5]) == min(20, int(index.sizes[1, 5]))


def left_out_attention(
    q: np.ndarray, index: ClusterIndex, values: torch.Tensor, chosen: torch.Tensor, h: int
) -> tuple[np.ndarray, float]:
    """One query over every unread token with its centroid as key, in loops."""
    logits, rows = [], []
    for c in range(chosen.shape[1]):
        if not chosen[h, c]:
            for o in index.order[h, index.starts[h, c] : index.starts[h, c + 1]].tolist():
                logits.append(q @ index.centroids[h, c].double().numpy() * 0.25)
                rows.append(values[o, h].double().numpy())
    return brute.softmax(np.array(logits)) @ np.array(rows), float(np.log(np.exp(logits).sum()))


def test_the_estimate_is_attention_with_centroids_for_keys() -> None:
    """Over exactly the tokens of the clusters that were not chosen."""
    keys, values, q = bunches(96), noise(96, width=10), torch.randn(3, 4, 16)
    index = build_clusters(keys, 8, 5)
    chosen = torch.rand(3, 12) < 0.4
    sums = value_sums(values, index)
    out, lse = estimate(q, index.centroids, sums, index.sizes, chosen, 0.25)
    for h in range(3):
        for g in range(4):
            row = q[h, g].double().numpy()
            wanted, wanted_lse = left_out_attention(row, index, values, chosen, h)
            np.testing.assert_allclose(out[h, g].numpy(), wanted, rtol=2e-5, atol=2e-5)
            assert lse[h, g].item() == pytest.approx(wanted_lse, rel=1e-5)


def test_the_estimate_merges_with_what_was_read() -> None:
    """Keys equal to their centroids: read part and estimate together are dense attention."""
    merge = load_ops("reference").merge
    centres = 2 * torch.randn(6, 1, 8)
    keys, values = centres.repeat_interleave(5, 0), noise(30, heads=1, width=4)
    q = torch.randn(1, 3, 8)
    index = build_clusters(keys, 4, 4, None)
    joined = join([index], [0])
    chosen = select_clusters(cluster_scores(q, index).amax(1), joined, 10)
    read = chosen.positions[0].long()
    logits = q[0] @ keys[read, 0].mT
    part = (logits.softmax(-1) @ values[read, 0])[None], logits.logsumexp(-1)[None]
    whole = estimate(
        q, index.centroids, value_sums(values, index), index.sizes, chosen.taken > 0, 1
    )
    out, lse = merge(*part, *whole)
    dense = q[0] @ keys[:, 0].mT
    torch.testing.assert_close(out[0], dense.softmax(-1) @ values[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse[0], dense.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_nothing_left_out_weighs_nothing() -> None:
    """All clusters chosen: zeros and -inf, and merging changes nothing."""
    index = build_clusters(noise(32), 8)
    sums, every = value_sums(noise(32), index), torch.ones(3, 4, dtype=torch.bool)
    out, lse = estimate(torch.randn(3, 2, 16), index.centroids, sums, index.sizes, every, 0.25)
    assert not out.any() and bool((lse == -torch.inf).all())
    other, other_lse = torch.randn_like(out), torch.randn_like(lse)
    merged, merged_lse = load_ops("reference").merge(other, other_lse, out, lse)
    assert torch.equal(merged, other) and torch.equal(merged_lse, other_lse)


def test_wrong_arguments_are_refused() -> None:
    """No segment, or a negative budget."""
    with pytest.raises(ValueError, match="at least one segment"):
        join([], [])
    index: JoinedIndex = join([build_clusters(noise(16))], [0])
    with pytest.raises(ValueError, match="budget must be at least 0, got -1"):
        select_clusters(torch.zeros(3, 1), index, -1)
