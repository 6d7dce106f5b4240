"""Sinks, window and budget, written once: from lengths and options to units per row.

Counts depend on lengths and options alone, never on data, so a host can plan a step before any
key is looked at.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config import RequestOptions
from ..geometry import Geometry

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RowOptions:
    """Options of the rows of a batch, one array entry per row.

    Attributes:
        budget: tokens, `[rows]`, already resolved from a ratio.
        sink: tokens, `[rows]`.
        window: tokens, `[rows]`.
    """

    budget: IntArray
    sink: IntArray
    window: IntArray

    @classmethod
    def resolve(cls, options: list[RequestOptions], lengths: IntArray) -> "RowOptions":
        """Arrays of the rows' options; a ratio becomes tokens of the row's context."""
        budgets = [o.budget_tokens(n) for o, n in zip(options, lengths.tolist(), strict=True)]
        return cls(
            np.array(budgets, dtype=np.int64),
            np.array([o.sink for o in options], dtype=np.int64),
            np.array([o.window for o in options], dtype=np.int64),
        )


@dataclass(frozen=True)
class RowPlan:
    """Units each row keeps; every attribute is an array `[rows]` of logical units or tokens.

    Attributes:
        num_units: units of the sequence, the partial tail included.
        begin: first candidate; units before it are sinks.
        end: one past the last candidate; units from it on are the window and the tail.
        counts: units kept.
        tail: tokens in the last unit.
        dense: every unit is kept.
        unit_size: tokens per unit.
    """

    num_units: IntArray
    begin: IntArray
    end: IntArray
    counts: IntArray
    tail: IntArray
    dense: BoolArray
    unit_size: int

    @property
    def attended(self) -> IntArray:
        """Tokens read per KV head, `[rows]`."""
        return (self.counts - 1) * self.unit_size + self.tail


def plan_rows(lengths: IntArray, options: RowOptions, geometry: Geometry) -> RowPlan:
    """Split every row into sinks, candidates and window, and count what the budget keeps.

    Args:
        lengths: tokens of each row, the current one included, at least 1.
        options: resolved options of the rows.
        geometry: unit size.

    Returns:
        Candidates are full units always: the tail belongs to the window even when it is full.
    """
    unit = geometry.unit_size
    num_units = -(-lengths // unit)
    window_begin = np.minimum(np.maximum(lengths - options.window, 0) // unit, num_units - 1)
    begin = np.minimum(-(-options.sink // unit), window_begin)
    tail = (lengths - 1) % unit + 1
    counts = np.minimum(num_units, np.maximum((options.budget - tail) // unit + 1, 1))
    kept = begin + num_units - window_begin
    assert bool(np.all((kept <= counts) | (counts == num_units))), "budget below sinks + window"
    return RowPlan(num_units, begin, window_begin, counts, tail, counts == num_units, unit)
