"""What rows that ask for a coverage have read, as a device counts it: known when it has come."""

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
from .telemetry import RequestTelemetry


@dataclass(frozen=True)
class Reader:
    """A row whose units are counted on the device.

    Attributes:
        place: in the step.
        entry: its request.
        era: changes when the request starts over, and what it has read counts no longer.
        layers: places in the buffer of layers in which it selects.
        unit: tokens of its units.
        tail: tokens of the last one.
    """

    place: int
    entry: RequestEntry
    era: RequestTelemetry
    layers: list[int]
    unit: int
    tail: int


class DeviceCounts:
    """Counts what such rows read.

    Args:
        step: what says so.
        table: of requests.
        layers: of the model.
        copies: brings the counts.
        read: hears of a request how many tokens it has read, summed over KV heads, and of how many
            heads these are.
    """

    def __init__(
        self,
        step: FusedDecode,
        table: RequestTable,
        layers: ModelLayers,
        copies: HostCopies,
        read: Callable[[RequestEntry, int, int], None],
    ) -> None:
        self._step, self._table, self._layers = step, table, layers
        self._copies, self._read = copies, read

    def begin_step(self, plan: HostPlan) -> None:
        """A sparse step begins."""
        selects = ~plan.dense_rows(self._layers.last_ours) & plan.adaptive
        readers = [self._reader(plan, int(place)) for place in np.flatnonzero(selects)]
        readers = [one for one in readers if one.entry.view is None]
        if readers:
            rows = 1 + max(one.place for one in readers)
            self._copies.want(self._step.buffers.cover.told[:rows], partial(self._told, readers))

    def _reader(self, plan: HostPlan, place: int) -> Reader:
        entry, covered = self._table.entry(int(plan.rows[place])), self._step.shape.covered
        first = max(covered.start, entry.options.dense_layers)
        layers = [n - covered.start for n in covered if n >= first and self._layers.is_ours(n)]
        unit, tail = int(plan.plan.unit_size[place]), int(plan.plan.tail[place])
        return Reader(place, entry, entry.telemetry, layers, unit, tail)

    def _told(self, readers: list[Reader], counts: torch.Tensor) -> None:
        """A step has left counts `[rows, layers, H]`."""
        for one in readers:
            if one.era is one.entry.telemetry:
                units = counts[one.place, one.layers]
                tokens = int(((units - 1) * one.unit + one.tail).sum())
                self._read(one.entry, tokens, units.shape[1])
