"""Landmarks: chunk means, and how badly they fit."""

import numpy as np
import pytest
import torch
from segments import brute
from segments.data import KINDS, noise

from sgl_sparsekv.segments.landmarks import landmarks, worst_cosines


@pytest.mark.parametrize("kind", KINDS)
def test_landmarks_and_misfits_are_those_of_the_formula(kind: str) -> None:
    """Means of 8 keys; the lowest cosine of a key with its mean."""
    keys = KINDS[kind](96)
    marks = landmarks(keys)
    cosines = worst_cosines(keys, marks)
    for h in range(3):
        rows = brute.head(keys, h).reshape(12, 8, 16)
        np.testing.assert_allclose(marks[:, h].numpy(), rows.mean(1), rtol=1e-6, atol=1e-7)
        worst = [min(brute.cosine(k, chunk.mean(0)) for k in chunk) for chunk in rows]
        np.testing.assert_allclose(cosines[h].numpy(), worst, rtol=1e-5, atol=1e-6)


def test_equal_keys_fit_their_landmark() -> None:
    """Cosine 1, and 0 where there is nothing to compare."""
    for keys, cosine in ((torch.ones(32, 2, 8), 1.0), (torch.zeros(32, 2, 8), 0.0)):
        marks = landmarks(keys)
        assert torch.equal(marks[:, 0], keys[::8, 0])
        assert torch.allclose(worst_cosines(keys, marks), torch.tensor(cosine))


def test_wrong_arguments_are_refused() -> None:
    """Partial chunks, and keys that are no numbers."""
    for tokens in (0, 12):
        with pytest.raises(ValueError, match=f"chunk must divide the {tokens} tokens"):
            landmarks(noise(tokens))
    keys = noise(16)
    keys[9, 1, 3] = torch.nan
    with pytest.raises(ValueError, match="keys must be finite, got nan at offset 9 of KV head 1"):
        landmarks(keys)
