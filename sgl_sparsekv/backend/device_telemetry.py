"""Telemetry of steps that run whole on a device: sampled by the host, measured in a graph.

The host knows which requests of a step are to be sampled. A graph that measures leaves the
attention mass of these rows in a buffer, which is read when it has come to the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..fused_ops import FusedDecode
from .host_copies import HostCopies
from .layers import ModelLayers
from .planner import HostPlan
from .request_table import RequestEntry, RequestTable
from .telemetry import LayerMass, RequestTelemetry


@dataclass(frozen=True)
class Sample:
    """A row that a step measures.

    Attributes:
        place: in the step.
        telemetry: of its request.
        method: by which it selects.
        layers: numbers of those in which it does.
    """

    place: int
    telemetry: RequestTelemetry
    method: str
    layers: list[int]


class DeviceTelemetry:
    """Samples the decode steps of requests that ask for telemetry.

    Args:
        step: what measures.
        table: who asks.
        layers: of the model.
        copies: brings what was measured.
        covered: hears of a method's selections what attention mass they held.
    """

    def __init__(
        self,
        step: FusedDecode,
        table: RequestTable,
        layers: ModelLayers,
        copies: HostCopies,
        covered: Callable[[str, torch.Tensor], None],
    ) -> None:
        self._step, self._table, self._layers = step, table, layers
        self._copies, self._covered = copies, covered

    def is_due(self, plan: HostPlan) -> bool:
        """Whether some row of a step is to be sampled if it is sparse."""
        selects = ~plan.dense_rows(self._layers.last_ours)
        return any(selects[place] and one.telemetry.is_due for place, one in self._asking(plan))

    def begin_step(self, plan: HostPlan, sparse: bool) -> bool:
        """Count a step for those of its requests that ask, and tell the device whom to sample.

        Args:
            plan: of its decode rows.
            sparse: rows select, where they do not read everything.

        Returns:
            whether the step measures.
        """
        selects, sampled = ~plan.dense_rows(self._layers.last_ours) & sparse, list[Sample]()
        for place, one in self._asking(plan):
            if one.telemetry.begin_step(bool(selects[place])):
                sampled.append(self._sample(place, one))
        if not sampled:
            return False
        rows = self._mark([sample.place for sample in sampled])
        self._copies.want(self._step.buffers.masses[:rows], partial(self._measured, sampled))
        return True

    def _asking(self, plan: HostPlan) -> list[tuple[int, RequestEntry]]:
        """Rows whose requests ask, by their places; rows that no request owns ask for nothing."""
        entries = ((i, self._table.entry(row)) for i, row in enumerate(plan.rows.tolist()))
        return [(i, entry) for i, entry in entries if entry.serial >= 0 and entry.watched]

    def _sample(self, place: int, entry: RequestEntry) -> Sample:
        options, known = entry.options, self._step.shape.measured
        layers = [n for n in known if n >= options.dense_layers and self._layers.is_ours(n)]
        return Sample(place, entry.telemetry, options.method, layers)

    def _mark(self, places: list[int]) -> int:
        """Tell the device which rows are sampled; gives how many rows hold all of them."""
        sampled = np.zeros(self._step.shape.max_rows, dtype=np.int32)
        sampled[places] = 1
        found = torch.from_numpy(sampled)
        self._step.mark(found.pin_memory() if self._step.buffers.masses.is_cuda else found)
        return 1 + max(places)

    def _measured(self, sampled: list[Sample], masses: torch.Tensor) -> None:
        """A step has left attention masses `[rows, layers, H, G]`."""
        first = self._step.shape.measured.start
        for sample in sampled:
            told, own = sample.telemetry, masses[sample.place]
            told.samples += 1
            for number in sample.layers:
                told.masses.setdefault(number, LayerMass()).add(own[number - first])
            self._covered(sample.method, own[[number - first for number in sample.layers]])
