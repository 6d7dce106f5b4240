"""Clusters: the paper's formula, a bounded size, and nothing lost."""

import math

import numpy as np
import pytest
import torch
from segments import brute
from segments.data import KINDS, bunches, noise

from sgl_sparsekv.segments.clusters import build_clusters, objective

RISE = 2.0**-20
"""Per token: directions keep 23 bits, so a sum of cosines may move by that much."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tokens", "each", "skip", "cap"),
    ((64, 8, 0, None), (64, 8, 0, 1.5), (96, 16, 5, 4.0), (40, 16, 16, 1.2), (60, 4, 3, 2.0)),
)
def test_the_index_is_that_of_the_formula(
    kind: str, tokens: int, each: int, skip: int, cap: float | None
) -> None:
    """Members and centroids equal k-means, capping and means written out in loops."""
    keys = KINDS[kind](tokens)
    index = build_clusters(keys, each, 6, cap, skip)
    count = math.ceil(tokens / each)
    for h in range(keys.shape[1]):
        points = brute.head(keys, h)[skip:]
        capacity = None if cap is None else math.ceil(cap * tokens / count)
        learned = count if capacity is None else count - tokens // capacity
        apart = learned > 1
        learned -= apart
        quiet = brute.quiet(points)
        far, _ = brute.kmeans(np.where(quiet[:, None], 0, points), learned, 6, spherical=True)
        labels = np.array(brute.place(far, quiet if apart else None, capacity))
        starts = index.starts[h].tolist()
        assert index.order[h, :skip].tolist() == list(range(skip)) and starts[0] == skip
        for c in range(count):
            members = np.flatnonzero(labels == c)
            assert index.order[h, starts[c] : starts[c + 1]].tolist() == (members + skip).tolist()
            mean = points[members].mean(0) if len(members) else np.zeros(points.shape[1])
            np.testing.assert_allclose(index.centroids[h, c].numpy(), mean, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_the_objective_never_rises_and_is_that_of_the_formula(
    kind: str, dtype: torch.dtype
) -> None:
    """Sum of 1 - cosine before every update."""
    keys = KINDS[kind](512, dtype=dtype)
    found = objective(keys, 16, 12)
    assert bool((found.diff(dim=0) <= RISE * 512).all())
    assert bool((found[-1] < found[0]).all())
    for step in (0, 1):
        far, _ = brute.kmeans(brute.head(keys, 1), 31, step, spherical=True)
        assert found[step, 1].item() == pytest.approx(far.min(1).sum(), rel=1e-5)


@pytest.mark.parametrize("cap", (1.1, 1.25, 4.0))
def test_no_token_is_lost_and_no_cluster_is_larger_than_the_cap(cap: float) -> None:
    """Every offset once, ascending inside a cluster."""
    index = build_clusters(bunches(300, dtype=torch.bfloat16), 16, 5, cap, 16)
    assert torch.equal(index.order.sort(-1).values, torch.arange(300).expand(3, -1).short())
    assert int(index.sizes.max()) <= math.ceil(cap * 300 / 19)
    labels = index.labels()
    assert torch.equal(labels[:, :16], torch.full((3, 16), -1))
    for h in range(3):
        for c, (begin, end) in enumerate(zip(index.starts[h], index.starts[h, 1:], strict=False)):
            members = index.order[h, begin:end].long()
            assert bool((members.diff() > 0).all()) and bool((labels[h, members] == c).all())


@pytest.mark.parametrize(
    "keys",
    (
        torch.ones(40, 2, 8),
        torch.zeros(40, 2, 8),
        torch.ones(1, 2, 8),
        torch.cat((torch.ones(20, 2, 8), -torch.ones(20, 2, 8))),
        torch.full((40, 2, 8), 3e38),
        torch.full((40, 2, 8), 1e-42),
    ),
    ids=("equal", "zero", "one token", "opposite", "huge", "tiny"),
)
def test_degenerate_keys_make_a_whole_index(keys: torch.Tensor) -> None:
    """Every token in some cluster, no centroid without a number."""
    index = build_clusters(keys, 4, 3, 2.0)
    assert torch.equal(
        index.order.sort(-1).values, torch.arange(len(keys)).expand(2, -1).to(torch.int16)
    )
    assert index.starts[:, -1].tolist() == [len(keys)] * 2
    assert bool(index.centroids.isfinite().all())
    assert int(index.sizes.max()) <= 8


def test_equal_keys_share_one_cluster_and_the_rest_is_empty() -> None:
    """Ties go to the lowest cluster; an empty one has a centroid of zeros."""
    index = build_clusters(torch.ones(32, 1, 4), 8, 3, None)
    assert index.sizes.tolist() == [[32, 0, 0, 0]]
    assert index.centroids[0].tolist() == [[1.0] * 4] + [[0.0] * 4] * 3


def test_quiet_keys_do_not_dilute_the_others() -> None:
    """Keys of a hundredth of the length and any direction have the last cluster to themselves."""
    keys = noise(64)
    keys[::2] /= 100 * keys[::2].norm(dim=-1, keepdim=True) / keys.norm(dim=-1).amin()
    index = build_clusters(keys, 8, 4, None)
    assert bool((index.labels()[:, ::2] == 7).all()) and bool((index.labels()[:, 1::2] < 7).all())


def test_fewer_keys_than_centroids_stand_alone() -> None:
    """Three keys after the sinks and ten clusters: each key is its own centroid."""
    keys = noise(10)
    index = build_clusters(keys, 1, 2, None, 7)
    assert index.sizes.sum(-1).tolist() == [3, 3, 3] and int(index.sizes.max()) == 1
    for h in range(3):
        owned = index.labels()[h, 7:]
        assert torch.equal(index.centroids[h, owned], keys[7:, h])


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"skip": 20}, "skip must be at least 0 and below 20 tokens, got 20"),
        ({"cap": 1.0}, "cap must be above 1, got 1.0"),
        ({"cap": float("nan")}, "cap must be above 1, got nan"),
        ({"tokens_per_centroid": 0}, "tokens_per_centroid must be at least 1, got 0"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
    ),
)
def test_wrong_arguments_are_refused(change: dict[str, float], message: str) -> None:
    """With the rule and the value."""
    with pytest.raises(ValueError, match=message):
        build_clusters(noise(20), **{"tokens_per_centroid": 16, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_keys_that_are_no_numbers_are_refused(bad: float) -> None:
    """Naming the token and the head."""
    keys = noise(20)
    keys[13, 2, 5] = bad
    with pytest.raises(ValueError, match=f"finite, got {bad} at offset 13 of KV head 2"):
        build_clusters(keys, 16)


def test_a_segment_must_hold_tokens() -> None:
    """None is refused, and so are more than int16 offsets can name."""
    for tokens in (0, (1 << 15) + 1):
        with pytest.raises(ValueError, match=f"keys must hold 1 to 32768 tokens, got {tokens}"):
            build_clusters(torch.zeros(tokens, 1, 1), 16)
