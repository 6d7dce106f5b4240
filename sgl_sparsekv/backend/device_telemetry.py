"""Telemetry of steps that run whole on a device: sampled by the host, measured in a graph.

The host knows which requests of a step are to be sampled. A graph that measures leaves the masses
of these rows in a buffer. Behind the step they are copied to the host, and the copy keeps whose
they are, as the next step may be of others. Nothing waits for it: it goes ahead of the tokens that
the same step gives, so whoever has the last token of a request has its samples too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..fused_ops import FusedDecode
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


@dataclass(frozen=True)
class Fetched:
    """What a step measured, on its way to the host.

    Attributes:
        samples: its rows.
        masses: float32 `[rows, layers, H, G]`, valid once it has come.
        arrival: when that is; None: it has.
    """

    samples: list[Sample]
    masses: torch.Tensor
    arrival: "torch.cuda.Event | None"

    @property
    def has_come(self) -> bool:
        """Whether the masses can be read."""
        return self.arrival is None or self.arrival.query()


class DeviceTelemetry:
    """Samples the decode steps of requests that ask for telemetry.

    Args:
        step: what measures.
        table: who asks.
        layers: of the model.
        covered: hears of a method's selections what masses they held.
    """

    def __init__(
        self,
        step: FusedDecode,
        table: RequestTable,
        layers: ModelLayers,
        covered: Callable[[str, torch.Tensor], None],
    ) -> None:
        self._step, self._table, self._layers, self._covered = step, table, layers, covered
        self._sampled: list[Sample] = []
        self._fetched: deque[Fetched] = deque()

    def is_due(self, plan: HostPlan) -> bool:
        """Whether some row of a step is to be sampled if it is sparse."""
        selects = ~plan.dense_rows(self._layers.last_ours)
        return any(selects[place] and one.telemetry.is_due for place, one in self._asking(plan))

    def begin_step(self, plan: HostPlan | None, sparse: bool) -> bool:
        """Count a step for those of its requests that ask, and tell the device whom to sample.

        Args:
            plan: of its decode rows; None when no row decodes.
            sparse: rows select, where they do not read everything.

        Returns:
            whether the step measures.
        """
        self.settle()
        self._sampled = []
        if plan is None:
            return False
        selects = ~plan.dense_rows(self._layers.last_ours) & sparse
        for place, one in self._asking(plan):
            if one.telemetry.begin_step(bool(selects[place])):
                self._sampled.append(self._sample(place, one))
        if self._sampled:
            self._tell()
        return bool(self._sampled)

    def fetch(self) -> None:
        """Behind the step: copy what it measured to the host."""
        if not self._sampled:
            return
        held, arrival = self._step.buffers.masses, None
        rows = 1 + max(sample.place for sample in self._sampled)
        masses = held[:rows].to("cpu", non_blocking=True, copy=True)
        if held.is_cuda:
            arrival = torch.cuda.Event()
            arrival.record()
        self._fetched.append(Fetched(self._sampled, masses, arrival))
        self._sampled = []

    def settle(self) -> None:
        """Give the requests what has come."""
        while self._fetched and self._fetched[0].has_come:
            fetched = self._fetched.popleft()
            for sample in fetched.samples:
                self._add(sample, fetched.masses[sample.place])

    def _asking(self, plan: HostPlan) -> list[tuple[int, RequestEntry]]:
        """Rows whose requests ask, by their places; rows that no request owns ask for nothing."""
        entries = ((i, self._table.entry(row)) for i, row in enumerate(plan.rows.tolist()))
        return [(i, entry) for i, entry in entries if entry.serial >= 0 and entry.watched]

    def _sample(self, place: int, entry: RequestEntry) -> Sample:
        options, known = entry.options, self._step.shape.measured
        layers = [n for n in known if n >= options.dense_layers and self._layers.is_ours(n)]
        return Sample(place, entry.telemetry, options.method, layers)

    def _tell(self) -> None:
        sampled = np.zeros(self._step.shape.max_rows, dtype=np.int32)
        sampled[[sample.place for sample in self._sampled]] = 1
        found = torch.from_numpy(sampled)
        self._step.mark(found.pin_memory() if self._step.buffers.masses.is_cuda else found)

    def _add(self, sample: Sample, masses: torch.Tensor) -> None:
        """Count what a row read of its attention, `[layers, H, G]`."""
        first, told = self._step.shape.measured.start, sample.telemetry
        told.samples += 1
        for number in sample.layers:
            told.masses.setdefault(number, LayerMass()).add(masses[number - first])
        self._covered(sample.method, masses[[number - first for number in sample.layers]])


_active: DeviceTelemetry | None = None


def activate_telemetry(telemetry: DeviceTelemetry | None) -> None:
    """Make it the one that hears of this process's steps."""
    global _active
    _active = telemetry


def fetch_masses(result: object, *args: Any, **kwargs: Any) -> None:
    """After `ModelRunner.forward`: copy what the step measured to the host, if it did."""
    if _active is not None:
        _active.fetch()
