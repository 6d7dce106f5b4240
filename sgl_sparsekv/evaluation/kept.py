"""Whether the tokens that an answer needs are among those that a request's view kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..views.stretches import kept_in

KEPT = "needle kept"
"""In a cell's detail: share of the needle's tokens that the view kept, over layers and KV heads."""


def share_kept(view: dict[str, Any], wanted: Sequence[int]) -> float:
    """Share of tokens that a view keeps, 0 to 1, the mean over its layers and KV heads.

    Args:
        view: of a response that was asked for its map.
        wanted: positions of the tokens, one at least; those that came since are kept.
    """
    heads = [head for heads in view["map"].values() for head in heads]
    if not heads:
        return 1.0
    since = np.asarray(wanted) >= view["made"]
    return float(np.mean([np.isin(wanted, kept_in(head)) | since for head in heads]))
