"""Kept tokens in a few numbers: lengths of stretches that are left out and kept by turns."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def stretches_of(positions: torch.Tensor, total: int) -> list[int]:
    """Lengths of stretches, left out and kept by turns, that sum to `total`.

    The first is left out, so it is 0 where the first token is kept.

    Args:
        positions: int `[n]`, ascending: tokens that are kept.
        total: tokens there were.
    """
    kept = np.zeros(total, dtype=bool)
    kept[positions.cpu().numpy()] = True
    starts = np.flatnonzero(np.diff(kept, prepend=False))
    lengths: list[int] = np.diff(starts, prepend=0, append=total).tolist()
    return lengths


def kept_in(stretches: Sequence[int]) -> npt.NDArray[np.int32]:
    """The positions `[n]`, ascending, that `stretches_of` was told."""
    kept = np.arange(len(stretches)) % 2 == 1
    return np.repeat(kept, stretches).nonzero()[0].astype(np.int32)
