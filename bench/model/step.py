"""Time of a decode step from the bytes that it must read."""

import math
from dataclasses import dataclass, replace

from bench.model.hardware import Gpu, Model
from bench.model.workload import Workload, metadata_bytes


@dataclass(frozen=True)
class Costs:
    """Times that are put in the place of byte floors, per layer, in microseconds.

    Attributes:
        selection_us: score and select, all of it; None: the floor of reading the metadata.
        launch_us: fixed cost of one launch.
        launches: launches per layer that dense attention does without.
        dense_us: dense attention; None: its floor.
        attend_us: attention over the selected tokens; None: its floor.

    Raises:
        ValueError: a time that is negative or not finite, or attention that takes none.
    """

    selection_us: float | None = None
    launch_us: float = 0.0
    launches: int = 2
    dense_us: float | None = None
    attend_us: float | None = None

    def __post_init__(self) -> None:
        for name in ("selection_us", "launch_us", "launches"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, got {value}")
        for name in ("dense_us", "attend_us"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True)
class Floors:
    """Microseconds of one decode step, at least.

    Attributes:
        layers: layers with attention.
        weights_us: reading the weights once, per step.
        dense_us: dense attention, per layer.
        selection_us: choosing, per layer: reading the metadata, or what was put in its place.
        attend_us: attention over the selected tokens, per layer.
    """

    layers: int
    weights_us: float
    dense_us: float
    selection_us: float
    attend_us: float

    @property
    def sparse_us(self) -> float:
        """Sparse attention with choosing, per layer."""
        return self.selection_us + self.attend_us

    @property
    def dense_attention_us(self) -> float:
        """Dense attention of all layers."""
        return self.layers * self.dense_us

    @property
    def sparse_attention_us(self) -> float:
        """Sparse attention of all layers."""
        return self.layers * self.sparse_us

    @property
    def dense_step_us(self) -> float:
        """The whole step with dense attention."""
        return self.weights_us + self.dense_attention_us

    @property
    def sparse_step_us(self) -> float:
        """The whole step with sparse attention."""
        return self.weights_us + self.sparse_attention_us

    @property
    def attention_gain(self) -> float:
        """Dense over sparse attention."""
        return self.dense_us / self.sparse_us

    @property
    def step_gain(self) -> float:
        """Dense over sparse step."""
        return self.dense_step_us / self.sparse_step_us


def floors(gpu: Gpu, model: Model, work: Workload, costs: Costs | None = None) -> Floors:
    """Floors of a step: weights once, and per request its KV or its metadata and selected KV.

    A budget that covers the context is served dense: nothing is chosen and nothing is saved.

    Args:
        gpu: machine.
        model: model.
        work: batch.
        costs: measured times in place of floors.
    """
    costs = costs or Costs()
    weights = gpu.us(model.weight_bytes)
    dense = gpu.us(work.batch * work.context * model.kv_bytes)
    found = Floors(model.layers, weights, dense, 0.0, dense)
    if costs.dense_us is not None:
        found = replace(found, dense_us=costs.dense_us, attend_us=costs.dense_us)
    if not work.sparse:
        return found
    metadata = gpu.us(work.batch * metadata_bytes(model, work))
    selected = gpu.us(work.batch * work.budget * model.kv_bytes)
    chosen = metadata if costs.selection_us is None else costs.selection_us
    return replace(
        found,
        selection_us=chosen + costs.launches * costs.launch_us,
        attend_us=selected if costs.attend_us is None else costs.attend_us,
    )
