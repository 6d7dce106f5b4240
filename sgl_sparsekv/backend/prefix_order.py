"""Which rows of a step stand together: requests that begin alike, one behind the other."""

from array import array
from collections.abc import Sequence

import numpy as np

from ..selection.policy import IntArray

BLOCK = 2048
"""Tokens of a prompt that are compared as one."""
Prefix = tuple[int, ...]
"""What a prompt begins with: a hash per whole block."""


def prefix_of(tokens: Sequence[int]) -> Prefix:
    """Hashes of the whole blocks of a prompt: equal as far as prompts are equal, in blocks."""
    data = array("q", tokens)
    return tuple(
        hash(data[first : first + BLOCK].tobytes())
        for first in range(0, len(data) - BLOCK + 1, BLOCK)
    )


def order_of(prefixes: Sequence[Prefix]) -> IntArray:
    """Rows of a step in the order of what they begin with; rows that begin alike stay in order.

    Rows on one prefix come one behind the other, whatever came between them in the batch.
    """
    return np.array(sorted(range(len(prefixes)), key=lambda row: prefixes[row]), dtype=np.int64)
