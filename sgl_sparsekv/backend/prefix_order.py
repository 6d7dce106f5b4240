"""Which rows of a step stand together: requests that begin alike, one behind the other.

What neighbours have in common is then read once for all of them. The device plan goes by what
prompts say, as pages are known to the device alone; the host plan goes by the pages.
"""

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


def together(table: IntArray) -> IntArray:
    """Rows in an order in which those that begin with the same pages are neighbours.

    Args:
        table: int32 `[rows, U]`, physical units of each row.

    Returns:
        int64 `[rows]`; as they come where no other order has neighbours with more in common.
    """
    as_given = np.arange(len(table))
    if len(table) < 3:
        return as_given
    ordered = np.array(sorted(as_given, key=lambda row: table[row].tobytes()), dtype=np.int64)
    gain = in_common(table[ordered]).sum() - in_common(table).sum()
    return ordered if gain > 0 else as_given


def in_common(table: IntArray) -> IntArray:
    """How many leading units each row has in common with the one before it, `[rows]`; first 0."""
    differs = table[1:] != table[:-1]
    leading = np.where(differs.any(1), differs.argmax(1), table.shape[1])
    return np.concatenate([np.zeros(1, dtype=np.int64), leading])
