"""Product quantisation: k-means per subspace, and what codes stand for."""

import numpy as np
import pytest
import torch
from segments import brute
from segments.data import KINDS, noise
from sklearn.cluster import KMeans

from sgl_sparsekv.segments.lloyd import fit
from sgl_sparsekv.segments.quantise import build_codebook, decode, encode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", (1, 4))
def test_lloyd_is_scikit_learns(kind: str, steps: int) -> None:
    """Same initial centroids and number of updates: same assignments, same centroids."""
    points = KINDS[kind](400).movedim(0, 1)
    found = fit(points, 16, steps, cosine=False)
    for h in range(3):
        rows = points[h].double().numpy()
        start = rows[np.arange(16) * 400 // 16]
        peer = KMeans(16, init=start, n_init=1, max_iter=steps, tol=0, algorithm="lloyd")
        with np.testing.suppress_warnings() as quiet:
            quiet.filter(Warning)
            peer.fit(rows)
        assert found.labels[h].tolist() == peer.labels_.tolist()
        np.testing.assert_allclose(
            found.centroids[h].numpy(), peer.cluster_centers_, rtol=1e-5, atol=1e-6
        )
        assert found.objective[-1, h].item() == pytest.approx(peer.inertia_, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_never_rises(kind: str) -> None:
    """Sum of squared distances, with more centroids than some data has bunches."""
    found = fit(KINDS[kind](300).movedim(0, 1), 64, 12, cosine=False).objective
    assert bool((found.diff(dim=0) <= found[0] * 2.0**-20).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "bits", "tokens"), ((2, 4, 120), (1, 3, 50), (4, 2, 64), (2, 6, 90)))
def test_codebook_and_codes_are_those_of_the_formula(
    kind: str, m: int, bits: int, tokens: int
) -> None:
    """k-means of each slice of channels, in loops."""
    keys = KINDS[kind](tokens)
    codebook = build_codebook(keys, m, bits, 3)
    codes = encode(keys, codebook)
    assert codes.dtype == torch.uint8 and codes.shape == (tokens, 3, m)
    for h in range(3):
        for j, part in enumerate(np.split(brute.head(keys, h), m, axis=1)):
            _, centres = brute.kmeans(part, 1 << bits, 3, spherical=False)
            stored = codebook.centroids[h, j].numpy()
            np.testing.assert_allclose(stored, centres, rtol=1e-6, atol=1e-6)
            distances = ((part[:, None] - stored[None].astype(np.float64)) ** 2).sum(-1)
            picked = np.take_along_axis(distances, codes[:, h, j, None].numpy().astype(int), 1)
            np.testing.assert_allclose(picked[:, 0], distances.min(1), rtol=1e-5, atol=1e-9)


def test_no_more_keys_than_centroids_are_coded_without_loss() -> None:
    """Every key becomes a centroid."""
    keys = noise(9)
    codebook = build_codebook(keys, 2, 6)
    assert torch.equal(decode(encode(keys, codebook), codebook), keys)


def test_equal_and_zero_keys_are_coded_without_loss() -> None:
    """One centroid is enough; ties go to the lowest code."""
    for keys in (torch.ones(10, 2, 8), torch.zeros(10, 2, 8), torch.ones(1, 2, 8)):
        codebook = build_codebook(keys, 2, 3, 2)
        codes = encode(keys, codebook)
        assert not codes.any() and torch.equal(decode(codes, codebook), keys)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"m": 3}, "m must divide head_dim 16, got 3"),
        ({"bits": 9}, "bits must be 1 to 8, got 9"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
    ),
)
def test_wrong_arguments_are_refused(change: dict[str, int], message: str) -> None:
    """With the rule and the value."""
    with pytest.raises(ValueError, match=message):
        build_codebook(noise(20), **{"m": 2, "bits": 6, **change})


def test_keys_that_are_no_numbers_are_refused() -> None:
    """When building and when coding."""
    keys = noise(20)
    codebook = build_codebook(keys, 2, 6)
    keys[3, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="keys must be finite, got nan at offset 3 of KV head 1"):
        build_codebook(keys, 2, 6)
    with pytest.raises(ValueError, match="keys must be finite, got nan at offset 3 of KV head 1"):
        encode(keys, codebook)
    with pytest.raises(ValueError, match="at least 1 token"):
        build_codebook(noise(0), 2, 6)
