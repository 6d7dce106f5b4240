"""Dense or sparse, once per step on the host: below the break-even, SGLang's own dense decode.

A sparse step reads fewer bytes and pays for choosing them. The saving counts over the whole batch,
so one long request and many short ones can both be worth it. Each captured batch size has both
graphs, and a third where sparse steps are measured now and then.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..geometry import ceil_div
from .planner import HostPlan

DENSE, SPARSE, MEASURED = "sparsekv_dense", "sparsekv_sparse", "sparsekv_measured"
"""What a step can be; the last is sparse, and tells how much of their attention rows read."""
FIXED_SECONDS = 9e-6
"""What choosing costs per layer whatever is chosen from: two launches more, and round trips to
memory before the first byte counts. From instruction counts, as all constants here: they stand
where nothing is measured at start (`break_even.py`)."""
CHUNK_UNITS, CHUNK_SECONDS = 2048, 3.5e-6
"""Units that a program of `select` looks at in one go, and how long that takes it."""
PROGRAMS_PER_PROCESSOR = 2
"""Programs of `select` that one multiprocessor holds at once."""
USUAL_PROCESSORS = 132
"""Multiprocessors where the driver does not say."""
USUAL_BANDWIDTH = 3.35e12
"""Bytes per second where the driver does not say."""


class Cost(ABC):
    """What choosing costs in one layer, in tokens that could be read in that time."""

    @abstractmethod
    def tokens(self, rows: int, units: int) -> int:
        """Of a step of so many rows whose longest has so many units; at least 1."""

    def break_even(self, rows: int, budget: int, unit_size: int, context: int) -> int | None:
        """Shortest context from which on equally long rows are worth choosing; None: beyond it."""
        for length in range(1024, context + 1, 1024):
            units = ceil_div(length, unit_size)
            if rows * (length - budget - units) >= self.tokens(rows, units):
                return length
        return None


@dataclass(frozen=True)
class PredictedCost(Cost):
    """From instruction counts and the memory's bandwidth.

    Attributes:
        heads: KV heads of this rank.
        kv_bytes: of K and V per token in one layer of this rank.
        bandwidth: bytes per second of the GPU's memory.
        processors: its multiprocessors.
    """

    heads: int
    kv_bytes: int
    bandwidth: float
    processors: int = USUAL_PROCESSORS

    def tokens(self, rows: int, units: int) -> int:
        """Of a step of so many rows whose longest has so many units; at least 1."""
        at_once = PROGRAMS_PER_PROCESSOR * self.processors
        waves = ceil_div(rows * self.heads, at_once)
        seconds = FIXED_SECONDS + waves * ceil_div(units, CHUNK_UNITS) * CHUNK_SECONDS
        return max(1, round(seconds * self.bandwidth / self.kv_bytes))


class BreakEven:
    """Chooses the captured graph of a step; SGLang's `AttentionGraphVariants`.

    Args:
        plan_of: host plan of a batch about to run, or None when no request is known to own it.
        needed: tokens that a step must save, summed over its rows, to be sparse; or what says so.
        max_rows: larger batches are dense.
        is_due: whether a sparse step is to be measured; None: none ever is.

    Attributes:
        capture_labels: the variants, in the order in which they are captured.
        forced: the variant of every batch, while dense and sparse ones are timed.
    """

    def __init__(
        self,
        plan_of: Callable[[Any], HostPlan | None],
        needed: int | Cost,
        max_rows: int,
        is_due: Callable[[HostPlan], bool] | None = None,
    ) -> None:
        self.capture_labels = (DENSE, SPARSE) if is_due is None else (DENSE, SPARSE, MEASURED)
        self.is_due = is_due
        self.plan_of = plan_of
        self.needed = needed
        self.max_rows = max_rows
        self.chosen = SPARSE
        self.forced: str | None = None

    def select(self, forward_batch: Any) -> str:
        """The variant of a batch; remembered until the next one.

        A step of a request that keeps a view is sparse in any case: SGLang's decode would read
        everything and leave no queries.
        """
        if self.forced is not None:
            self.chosen = self.forced
            return self.chosen
        self.chosen = self._variant(forward_batch)
        return self.chosen

    def _variant(self, forward_batch: Any) -> str:
        plan = self.plan_of(forward_batch)
        if plan is None or forward_batch.batch_size > self.max_rows:
            return DENSE
        if not plan.keeps_views and plan.saved_tokens() < self._needed(plan):
            return DENSE
        return MEASURED if self.is_due is not None and self.is_due(plan) else SPARSE

    def _needed(self, plan: HostPlan) -> int:
        if isinstance(self.needed, int):
            return self.needed
        return self.needed.tokens(len(plan.rows), int(plan.plan.num_units.max()))


def predicted_cost(heads: int, kv_bytes: int, device: Any) -> PredictedCost:
    """What choosing is predicted to cost on a device.

    Args:
        heads: KV heads of this rank.
        kv_bytes: of K and V per token in one layer of this rank.
        device: where the cache lies.
    """
    import torch

    if device.type != "cuda":
        return PredictedCost(heads, kv_bytes, USUAL_BANDWIDTH)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return PredictedCost(heads, kv_bytes, bandwidth(device), count)


def bandwidth(device: Any) -> float:
    """Bytes per second of a GPU's memory, from its clock and width (two transfers a clock)."""
    import torch

    if device.type != "cuda":
        return USUAL_BANDWIDTH
    properties = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "memory_clock_rate", 0)
    width = getattr(properties, "memory_bus_width", 0)
    return 2 * clock * 1e3 * width / 8 or USUAL_BANDWIDTH


_active: BreakEven | None = None


def activate_gate(gate: BreakEven | None) -> None:
    """Make a gate the one that this process's graph runner asks."""
    global _active
    _active = gate


def active_gate() -> BreakEven | None:
    """The one that this process's graph runner asks, if our backend serves it."""
    return _active


def graph_variants(result: Any, *args: Any, **kwargs: Any) -> Any:
    """After `create_attention_graph_variants`: ours, where our backend asks for both graphs."""
    return _active if _active is not None else result
