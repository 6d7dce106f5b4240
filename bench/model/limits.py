"""Where sparse reading begins to pay, and what choosing may cost."""

import math

from bench.model.hardware import Gpu, Model
from bench.model.step import Floors
from bench.model.workload import Workload, metadata_share


def break_even_by_bytes(model: Model, work: Workload) -> float:
    """Tokens of context at which metadata and selected KV are as many bytes as all KV.

    `context * share + budget = context`, so `budget / (1 - share)`; infinite where the metadata
    alone outweighs the KV.
    """
    share = metadata_share(model, work)
    return work.budget / (1 - share) if share < 1 else math.inf


def break_even(
    gpu: Gpu, model: Model, work: Workload, selection_us: float, launch_us: float = 0.0
) -> float:
    """Tokens of context at which sparse takes as long as dense, choosing at a given price.

    `context = budget + cost / (time of one token's KV)`: whatever attention costs per launch,
    dense pays it too.

    Args:
        gpu: machine.
        model: model.
        work: batch; its context does not matter.
        selection_us: score and select per layer, all of it.
        launch_us: fixed costs per layer that dense does without, all launches together.
    """
    token_us = gpu.us(work.batch * model.kv_bytes)
    return work.budget + (selection_us + launch_us) / token_us


def max_selection_us(dense_us: float, attend_us: float, gain: float = 1.0) -> float:
    """Microseconds per layer that choosing may take at most, launches included.

    Args:
        dense_us: dense attention per layer.
        attend_us: attention over the selected tokens per layer.
        gain: wanted dense over sparse attention; 1: the same time.

    Returns:
        Negative where the gain is out of reach even if choosing is free.
    """
    return dense_us / gain - attend_us


def max_selection_for_step(found: Floors, gain: float) -> float:
    """As `max_selection_us`, for a wanted gain of the whole step."""
    attention = (found.dense_step_us / gain - found.weights_us) / found.layers
    return attention - found.attend_us


def spare_us(found: Floors, share: float) -> float:
    """Microseconds per layer, above the floors, that cost `share` of the sparse step."""
    return share * found.sparse_step_us / found.layers
