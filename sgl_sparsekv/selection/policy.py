"""Sinks, window and budget, written once: from lengths and options to units per row.

Counts depend on lengths and options alone, never on data, so a host can plan a step before any
key is looked at. With `coverage` or `budget_split` they are ceilings, and what each KV head reads
below them is found from its scores (`Ops.allot`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..geometry import Geometry

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Budgeted(Protocol):
    """What of a request's options the policy asks for: `sgl_sparsekv.config.RequestOptions`."""

    @property
    def sink(self) -> int:
        """First tokens, always kept."""

    @property
    def window(self) -> int:
        """Newest tokens, always kept."""

    def budget_tokens(self, length: int) -> int:
        """Budget in tokens for a context of `length` tokens."""


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
    def resolve(cls, options: Sequence[Budgeted], lengths: IntArray) -> "RowOptions":
        """Arrays of the rows' options; a ratio becomes tokens of the row's context."""
        budgets = [o.budget_tokens(n) for o, n in zip(options, lengths.tolist(), strict=True)]
        return cls(
            np.array(budgets, dtype=np.int64),
            np.array([o.sink for o in options], dtype=np.int64),
            np.array([o.window for o in options], dtype=np.int64),
        )


@dataclass(frozen=True)
class RowPlan:
    """Units each row keeps; every attribute is an array `[rows]`, counted in the row's own unit.

    Attributes:
        unit_size: tokens per unit of the row.
        num_units: units of the sequence, the partial tail included.
        begin: first candidate; units before it are sinks.
        end: one past the last candidate; units from it on are the window and the tail.
        counts: units kept.
        tail: tokens in the last unit.
        dense: every unit is kept.
    """

    unit_size: IntArray
    num_units: IntArray
    begin: IntArray
    end: IntArray
    counts: IntArray
    tail: IntArray
    dense: BoolArray

    @classmethod
    def everything(cls, lengths: IntArray, unit_size: int) -> "RowPlan":
        """Rows that keep all of their units of `unit_size` tokens."""
        units = np.full_like(lengths, unit_size)
        count, none = -(-lengths // unit_size), np.zeros_like(lengths)
        tail = (lengths - 1) % unit_size + 1
        return cls(units, count, none, none, count, tail, np.ones(len(lengths), dtype=bool))

    @property
    def attended(self) -> IntArray:
        """Tokens read per KV head, `[rows]`."""
        return (self.counts - 1) * self.unit_size + self.tail


def plan_rows(
    lengths: IntArray,
    options: RowOptions,
    geometry: Geometry,
    unit_sizes: IntArray | None = None,
) -> RowPlan:
    """Split every row into sinks, candidates and window, and count what the budget keeps.

    Sinks and window are whole units of the geometry, whatever a method selects in: only what has
    filled such a unit has metadata, so the tail belongs to the window even when it is full.

    Args:
        lengths: tokens of each row, the current one included, at least 1.
        options: resolved options of the rows.
        geometry: the server's unit.
        unit_sizes: what each row selects in, divisors of that unit; None: that unit.
    """
    whole = geometry.unit_size
    own = np.full_like(lengths, whole) if unit_sizes is None else unit_sizes
    assert not np.any(whole % own), "a method's unit must divide the server's"
    last = -(-lengths // whole) - 1
    window_begin = np.minimum(np.maximum(lengths - options.window, 0) // whole, last)
    begin = np.minimum(-(-options.sink // whole), window_begin) * (whole // own)
    end = window_begin * (whole // own)
    num_units = -(-lengths // own)
    tail = (lengths - 1) % own + 1
    counts = np.minimum(num_units, np.maximum((options.budget - tail) // own + 1, 1))
    kept = begin + num_units - end
    assert bool(np.all((kept <= counts) | (counts == num_units))), "budget below sinks + window"
    return RowPlan(own, num_units, begin, end, counts, tail, counts == num_units)
