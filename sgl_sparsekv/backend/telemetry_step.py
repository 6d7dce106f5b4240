"""Measures one decode step for the requests of it that asked, and does nothing for the others.

A query head's attention mass is the share of its softmax that the selection holds:
exp(lse of the selection - lse of everything). The second takes a read of every unit, so it is found
in sampled steps only.
"""

from time import perf_counter

import torch

from ..ops import Ops
from ..selection.certificate import mass_floor
from ..selection.policy import RowPlan
from ..types import ScoreInputs, Selection
from .planner import RowGroup, StepPlan
from .telemetry import LayerMass, RequestTelemetry


class StepTelemetry:
    """The rows of one decode step whose requests asked; where none did, every call returns at once.

    Args:
        plan: of the step.
        asked: by position in the step, the telemetry of a row that asked, else None.
        ops: of the device.
        last_layer: number of this rank's last layer that can select.
        timed: an op is over when its call returns.
    """

    def __init__(
        self,
        plan: StepPlan,
        asked: list[RequestTelemetry | None],
        ops: Ops,
        last_layer: int,
        timed: bool,
    ) -> None:
        self._plan, self._ops, self._timed = plan, ops, timed
        self._asked = {place: one for place, one in enumerate(asked) if one is not None}
        self._sampled: set[int] = set()
        self._began = self._select_s = 0.0
        if self._asked:
            everything = plan.dense_rows(last_layer)
            begun = {i: one.begin_step(not everything[i]) for i, one in self._asked.items()}
            self._sampled = {place for place, sample in begun.items() if sample}
            for place in self._sampled:
                self._asked[place].samples += 1

    def selecting(self) -> None:
        """A group's turn in a layer begins."""
        if self._asked:
            self._select_s, self._began = 0.0, perf_counter()

    def selected(self) -> None:
        """The group is scored and its selection made."""
        if self._asked:
            self._select_s = perf_counter() - self._began

    def attending(self) -> None:
        """What was done since is nobody's time; the group's read begins."""
        if self._asked:
            self._began = perf_counter()

    def attended(self, group: RowGroup) -> None:
        """The group's read is over."""
        if not self._asked or not self._timed:
            return
        attend_s, members = perf_counter() - self._began, group.index.tolist()
        for place in members:
            one = self._asked.get(place)
            if one is not None:
                one.select_s += self._select_s
                one.attend_s += attend_s
                one.attends += 1
                one.companions += len(members)

    def cover(
        self,
        layer: int,
        group: RowGroup,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        scale: float,
        lse: torch.Tensor,
    ) -> torch.Tensor | None:
        """Hold what a group selected in a layer against everything, for its sampled rows.

        Args:
            layer: its number.
            group: rows that attended.
            q: `[rows, H, G, D]`.
            cache: the pool's K `[slots, H, D]` and V `[slots, H, Dv]`.
            scale: softmax scale.
            lse: float32 `[rows, H, G]`, over what the group read.

        Returns:
            Attention mass `[sampled rows, H, G]`; None where no row is sampled.
        """
        rows, own = self._sampled_of(group)
        if not rows:
            return None
        shares = (lse[rows] - self._whole(own, q[rows], cache, scale)).exp().clamp(max=1.0)
        for place, heads in zip(own, shares, strict=True):
            self._asked[place].masses.setdefault(layer, LayerMass()).add(heads)
        return shares

    def certify(
        self, layer: int, group: RowGroup, selection: Selection, inputs: ScoreInputs
    ) -> None:
        """Note what a selection holds at least, for sampled rows of a method that can tell.

        Args:
            layer: its number.
            group: rows that attended.
            selection: what they read.
            inputs: what it could be made from.
        """
        rows, own = self._sampled_of(group)
        there = torch.tensor(rows, device=inputs.q.device)
        assert group.method is not None and rows
        part = inputs.take(there)
        ceiling = group.method.ceiling(part)
        if ceiling is None:
            return
        floors = mass_floor(part, selection.take(there), group.tails[there], ceiling)
        for place, heads in zip(own, floors, strict=True):
            self._asked[place].floors.setdefault(layer, LayerMass()).add(heads)

    def _sampled_of(self, group: RowGroup) -> tuple[list[int], list[int]]:
        """Rows of a group that selects which are sampled, and their places in the step."""
        if not self._sampled or group.method is None:
            return [], []
        places = group.index.tolist()
        rows = [row for row, place in enumerate(places) if place in self._sampled]
        return rows, [places[row] for row in rows]

    def _whole(
        self,
        places: list[int],
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        scale: float,
    ) -> torch.Tensor:
        """lse float32 `[rows, H, G]` over every unit of the rows at `places` of the step."""
        plan, size = self._plan, self._plan.geometry.unit_size
        everything = RowPlan.everything(plan.lengths[places], size)
        counts = torch.from_numpy(everything.num_units).int().to(q.device)
        tails = torch.from_numpy(everything.tail).int().to(q.device)
        table = plan.unit_table[places, : int(everything.num_units.max())]
        heads = table[:, None, :].expand(-1, q.shape[1], -1)
        _, lse = self._ops.attend(q, *cache, heads, counts, tails, scale, size)
        return lse
