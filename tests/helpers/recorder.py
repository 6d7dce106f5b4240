"""Stands where the backend's observer stands and keeps what a step did."""

from dataclasses import dataclass, field
from typing import Any

import torch

from sgl_sparsekv.types import Selection, TokenLists


@dataclass
class Judged:
    """A decode row of a step.

    Attributes:
        live: the request.
        place: its position in the step's plan.
        row: row of `req_to_token`.
        length: tokens, the current one included.
    """

    live: Any
    place: int
    row: int
    length: int


@dataclass
class Recorder:
    """Same calls as `StepObserver`.

    Attributes:
        judged: decode rows of the last step whose results count.
        done: the last step went through all layers.
        groups: by layer, the groups of the step and what they selected (None: everything).
        outputs: by layer, `[tokens, H, G, D]`.
        backend: whose steps these are.
    """

    judged: list[Judged] = field(default_factory=list)
    done: bool = False
    groups: dict[int, list[tuple[Any, Selection | None]]] = field(default_factory=dict)
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    plan: Any = None
    pending: int = 0
    backend: Any = None

    def start(self, decode: list[tuple[int, Any]]) -> None:
        """A step's layers begin; `decode` are its (place in the batch, request) that count."""
        first = min((place for place, _ in decode), default=0)
        self.judged = [Judged(live, i - first, live.row, live.length) for i, live in decode]
        self.groups, self.outputs, self.done = {}, {}, False

    def batch_step(self, dense: bool) -> None:
        """See `StepObserver.batch_step`."""

    def begin_step(self, plan: Any, summarised: int, dense: bool = False) -> None:
        """See `StepObserver.begin_step`."""
        self.plan, self.pending = plan, summarised
        if plan is None:
            return
        attended, in_context = plan.attended(self.backend.layers)
        read = (plan.rows, in_context if dense else attended, in_context, plan.lengths)
        for row, *counts in zip(*(values.tolist() for values in read), strict=True):
            self.backend.table.record(row, *counts)

    def dense(self, layer: int, group: Any) -> None:
        """See `StepObserver.dense`."""
        self.groups.setdefault(layer, []).append((group, None))

    def selected(self, layer: int, group: Any, selection: Selection) -> None:
        """See `StepObserver.selected`."""
        if getattr(group, "goal", None) is not None or getattr(group, "view", False):
            tokens = (selection.counts - 1) * group.unit_size + group.tails[:, None]
            for place, total in zip(group.index.tolist(), tokens.sum(1).tolist(), strict=True):
                row = int(self.plan.rows[place])
                self.backend.table.entry(row).read(total, tokens.shape[1])
        self.groups.setdefault(layer, []).append((group, selection))

    def listed(self, layer: int, group: Any, lists: TokenLists) -> None:
        """See `StepObserver.listed`."""
        self.selected(layer, group, lists.selection)

    def read_beside(self, place: int, tokens: int, heads: int) -> None:
        """See `StepObserver.read_beside`."""
        self.backend.table.entry(int(self.plan.rows[place])).read(tokens, heads)

    def read(self, entry: Any, tokens: int, heads: int) -> None:
        """See `StepObserver.read`."""
        entry.read(tokens, heads)

    def covered(self, method: str, mass: torch.Tensor) -> None:
        """See `StepObserver.covered`."""

    def end_layer(self, layer: int, keys: torch.Tensor) -> None:
        """See `StepObserver.end_layer`."""

    def check_records(self, index: Any, layer: int, keys: torch.Tensor) -> None:
        """See `StepObserver.check_records`."""

    def indexed(self, method: str, records: Any) -> None:
        """See `StepObserver.indexed`."""

    def prefix_hit(self, slots: torch.Tensor) -> None:
        """See `StepObserver.prefix_hit`."""

    def prefix_units(self, count: int) -> None:
        """See `StepObserver.prefix_units`."""

    @property
    def check_is_due(self) -> bool:
        """See `StepObserver.check_is_due`."""
        return False

    def units_of(self, layer: int, place: int) -> list[list[int]]:
        """Logical units `[H][n]` that a plan row read in a layer."""
        for group, selection in self.groups[layer]:
            where = group.index.tolist()
            if place in where:
                i = where.index(place)
                if selection is None:
                    every = list(range(int(group.counts[i])))
                    return [every] * group.take(self.outputs[layer]).shape[1]
                return _listed(selection.logical[i], selection.counts[i])
        raise AssertionError(f"row {place} of layer {layer} is in no group")

    def indexed_of(self, layer: int, place: int, what: str = "records") -> list[bool]:
        """Which whole segments of a plan row had a record; empty where none is read.

        Args:
            layer: counted from 0.
            place: position in the plan.
            what: "records" to rank by, or those of the "rest".
        """
        for group, _ in self.groups[layer]:
            where, table = group.index.tolist(), getattr(group, what)
            if place in where and table is not None:
                return (table[where.index(place)] >= 0).tolist()
        return []

    def physical_of(self, layer: int, place: int) -> list[list[int]] | None:
        """Physical units `[H][n]` of a selecting row; None when it read everything."""
        for group, selection in self.groups[layer]:
            where = group.index.tolist()
            if place in where and selection is not None:
                i = where.index(place)
                return _listed(selection.physical[i], selection.counts[i])
        return None


def _listed(units: torch.Tensor, counts: torch.Tensor) -> list[list[int]]:
    """The valid entries of each KV head."""
    return [head[:count].tolist() for head, count in zip(units, counts.tolist(), strict=True)]
