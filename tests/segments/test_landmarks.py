"""Landmarks: chunk means, outliers by the worst cosine, selection by the group's maximum."""

import numpy as np
import pytest
import torch
from segments import brute
from segments.data import KINDS, noise

from sgl_sparsekv.segments.landmarks import (
    chunk_scores,
    landmarks,
    outliers,
    select_chunks,
    worst_cosines,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("quota", "sinks"), ((0, 0), (3, 0), (3, 2), (40, 1)))
def test_landmarks_and_outliers_are_those_of_the_formula(kind: str, quota: int, sinks: int) -> None:
    """Means of 8 keys; the lowest minimal cosines; sink chunks first."""
    keys = KINDS[kind](96)
    marks = landmarks(keys)
    found = outliers(keys, marks, quota, sinks)
    cosines = worst_cosines(keys, marks)
    for h in range(3):
        rows = brute.head(keys, h).reshape(12, 8, 16)
        np.testing.assert_allclose(marks[:, h].numpy(), rows.mean(1), rtol=1e-6, atol=1e-7)
        worst = [min(brute.cosine(k, chunk.mean(0)) for k in chunk) for chunk in rows]
        np.testing.assert_allclose(cosines[h].numpy(), worst, rtol=1e-5, atol=1e-6)
        order = sorted(range(12), key=lambda c: (c >= sinks, worst[c], c))
        assert found[h].tolist() == sorted(order[: min(quota, 12)])


@pytest.mark.parametrize("count", (0, 4, 100))
def test_selection_is_that_of_the_formula(count: int) -> None:
    """Softmax over what is no outlier, maximum over the group, best `count`, outliers always."""
    keys, q = noise(96), 3 * torch.randn(3, 4, 16)
    marks = landmarks(keys)
    always = outliers(keys, marks, 2, 1)
    chosen = select_chunks(q, marks, always, 0.25, count)
    assert chosen.shape == (3, min(count + 2, 12))
    for h in range(3):
        rest = [c for c in range(12) if c not in always[h].tolist()]
        logits = q[h].double().numpy() @ marks[rest, h].double().numpy().T * 0.25
        share = np.max([brute.softmax(row) for row in logits], axis=0)
        order = sorted(range(len(rest)), key=lambda i: (-share[i], i))
        wanted = sorted([*always[h].tolist(), *(rest[i] for i in order[:count])])
        assert chosen[h].tolist() == wanted
        scores = chunk_scores(q, marks, always, 0.25)[h]
        np.testing.assert_allclose(scores[rest].exp().numpy(), share, rtol=2e-5)
        assert bool((scores[always[h].long()] == -torch.inf).all())


def test_degenerate_keys_keep_the_first_chunks() -> None:
    """Equal or zero keys fit equally well everywhere: ties go to the lower chunk."""
    for keys in (torch.ones(32, 2, 8), torch.zeros(32, 2, 8), torch.ones(8, 2, 8)):
        marks = landmarks(keys)
        assert torch.equal(marks[:, 0], keys[::8, 0])
        assert outliers(keys, marks, 1).tolist() == [[0], [0]]


def test_wrong_arguments_are_refused() -> None:
    """Partial chunks, keys that are no numbers, a quota without room for the sinks."""
    for tokens in (0, 12):
        with pytest.raises(ValueError, match=f"chunk must divide the {tokens} tokens"):
            landmarks(noise(tokens))
    keys = noise(16)
    with pytest.raises(ValueError, match="quota must be at least the 2 sink chunks, got 1"):
        outliers(keys, landmarks(keys), 1, 2)
    keys[9, 1, 3] = torch.nan
    with pytest.raises(ValueError, match="keys must be finite, got nan at offset 9 of KV head 1"):
        landmarks(keys)
