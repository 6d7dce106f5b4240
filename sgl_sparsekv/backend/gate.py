"""Dense or sparse, once per step on the host: below the break-even, SGLang's own dense decode.

A sparse step reads fewer bytes and pays for choosing them. The saving counts over the whole batch,
so one long request and many short ones can both be worth it. Each captured batch size has both
graphs.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from .planner import HostPlan

DENSE, SPARSE = "sparsekv_dense", "sparsekv_sparse"
SELECTION_SECONDS = 14e-6
"""What choosing costs per layer beyond reading metadata: two launches and their tails. Stated, not
measured on a GPU yet."""
USUAL_BANDWIDTH = 3.35e12
"""Bytes per second where the driver does not say."""


class BreakEven:
    """Chooses the captured graph of a step; SGLang's `AttentionGraphVariants`.

    Args:
        plan_of: host plan of a batch about to run, or None when no request is known to own it.
        needed: tokens that a step must save, summed over its rows, to be sparse.
        max_rows: larger batches are dense.
    """

    capture_labels: ClassVar[tuple[str, ...]] = (DENSE, SPARSE)

    def __init__(
        self, plan_of: Callable[[Any], HostPlan | None], needed: int, max_rows: int
    ) -> None:
        self.plan_of = plan_of
        self.needed = needed
        self.max_rows = max_rows
        self.chosen = SPARSE

    def select(self, forward_batch: Any) -> str:
        """The variant of a batch; remembered until the next one."""
        plan = self.plan_of(forward_batch)
        worth = plan is not None and plan.saved_tokens() >= self.needed
        fits = forward_batch.batch_size <= self.max_rows
        self.chosen = SPARSE if worth and fits else DENSE
        return self.chosen


def needed_tokens(kv_bytes_per_token: int, device: Any) -> int:
    """Tokens whose reading takes as long as choosing does, in one layer of this rank."""
    return max(1, round(SELECTION_SECONDS * bandwidth(device) / kv_bytes_per_token))


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


def graph_variants(result: Any, *args: Any, **kwargs: Any) -> Any:
    """After `create_attention_graph_variants`: ours, where our backend asks for both graphs."""
    return _active if _active is not None else result
