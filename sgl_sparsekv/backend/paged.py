"""Attend through a stock paged-decode kernel: one plan per step for each class of layers."""

from collections import OrderedDict

import numpy as np
import torch

from ..errors import UnsupportedSetup
from ..routes import PagedAttend, load_route
from ..types import AttendShape, StepShape
from .planner import HostPlan

EAGER_KEPT = 4
"""Row counts of steps without a graph whose workspaces are kept, those used last; what others sent
to the device has left them steps ago. Captured sizes keep theirs."""


class PagedRoute:
    """The `PagedAttend` of every captured batch size and class of layers.

    Layers are of one class when the same rows are dense in them: each of the first `dense_layers`
    is one, all behind them are another.

    Raises:
        UnsupportedSetup: the kernel cannot serve this model on this GPU.
    """

    def __init__(
        self, name: str, shape: StepShape, dense_layers: int, capability: tuple[int, int]
    ) -> None:
        self._route = load_route(name)
        self._shape = shape
        self._classes = dense_layers + 1
        self._captured: dict[int, list[PagedAttend]] = {}
        self._eager: OrderedDict[int, list[PagedAttend]] = OrderedDict()
        self._current: list[PagedAttend] = []
        reason = self._route.unsupported(self._attend_shape(1, False), capability)
        if reason:
            raise UnsupportedSetup(reason)

    def plan(self, rows: int, plan: HostPlan | None, graph: bool) -> None:
        """Host work of a step of `rows` rows, padding included; None plans the shortest rows."""
        made = self._captured if graph else self._eager
        if rows not in made:
            shape = self._attend_shape(rows, graph)
            made[rows] = [self._route.create(shape) for _ in range(self._classes)]
        self._current = made[rows]
        if not graph:
            self._eager.move_to_end(rows)
            while len(self._eager) > EAGER_KEPT:
                self._eager.popitem(last=False)
        for layer, attend in enumerate(self._current):
            counts, tails = np.ones(rows, np.int64), np.ones(rows, np.int64)
            if plan is not None:
                real = len(plan.rows)
                dense = plan.dense_rows(layer)
                counts[:real] = np.where(dense, plan.plan.num_units, plan.plan.counts)
                tails[:real] = plan.plan.tail
            attend.plan(counts, tails)

    def of_layer(self, layer: int) -> PagedAttend:
        """What attends in a layer, by its number."""
        return self._current[min(layer, self._classes - 1)]

    def _attend_shape(self, rows: int, graph: bool) -> AttendShape:
        shape = self._shape
        return AttendShape(
            rows=rows,
            heads=shape.heads,
            group=shape.group,
            head_dim=shape.head_dim,
            v_head_dim=shape.v_head_dim,
            unit_size=shape.unit_size,
            max_units=shape.max_units,
            dtype=shape.dtype,
            device=torch.device(shape.device),
            graph=graph,
        )
