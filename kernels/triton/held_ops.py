"""Rows that choose every r-th step, as a part of `fused`: what they hold, and launches of `held`.

plan, commit   one launch each, at the head and the end of a step
choose         one launch a layer, behind those that select
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sgl_sparsekv.types import HeldShape, StepShape

from .held import ASKED, RECORD, choose_held_kernel, commit_held_kernel, plan_held_kernel
from .launch import early
from .tuning import HELD_CHUNK, HELD_WARPS

if TYPE_CHECKING:
    from .buffers import StepBuffers


@dataclass(frozen=True)
class HeldBuffers:
    """What requests hold, and what the rows of a step do with it.

    Attributes:
        asked: int32 `[requests, 3]`, by row of `req_to_token`: steps of a period, place of what it
            holds or -1, and a number that is another one for every other request; 0: nothing asked.
        records: int32 `[places, 4]`, see `held.RECORD`; all -1 where nothing is held.
        keys, units: int32 `[places, layers, H, units]`, candidates that are held, ascending.
        formulas: int32 `[max_rows]`, by which rows are scored in this step.
        counts: int32 `[max_rows]`, units that are selected for them.
        does, places: int32 `[2, max_rows]` and `[max_rows]`; drafts: int32 `[max_rows, 4]`, see
            `held.plan_held_kernel`.
        drawn: int32 `[max_rows, H, max_selected]`, keys of what was selected to be held.
    """

    asked: torch.Tensor
    records: torch.Tensor
    keys: torch.Tensor
    units: torch.Tensor
    formulas: torch.Tensor
    counts: torch.Tensor
    does: torch.Tensor
    places: torch.Tensor
    drafts: torch.Tensor
    drawn: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in vars(self).values())


def allocate_held(shape: StepShape, room: HeldShape) -> HeldBuffers:
    """Buffers of as many requests as there is room for; none holds anything."""
    rows, device = shape.max_rows, shape.device

    def full(*extents: int, fill: int = 0) -> torch.Tensor:
        return torch.full(extents, fill, dtype=torch.int32, device=device)

    held = (room.places, room.layers, shape.heads, room.units)
    return HeldBuffers(
        asked=full(shape.requests, ASKED.value),
        records=full(room.places, RECORD.value, fill=-1),
        keys=full(*held),
        units=full(*held),
        formulas=full(rows),
        counts=full(rows),
        does=full(2, rows),
        places=full(rows),
        drafts=full(rows, RECORD.value),
        drawn=full(rows, shape.heads, shape.max_selected),
    )


class HeldRows:
    """Rows that hold what they choose, in a server's steps.

    Args:
        shape: of the steps.
        held: buffers of what they hold.
    """

    def __init__(self, shape: StepShape, held: HeldBuffers) -> None:
        assert shape.held is not None
        self.shape, self.room, self.held = shape, shape.held, held

    def plan(
        self, request_rows: torch.Tensor, lengths: torch.Tensor, buffers: "StepBuffers"
    ) -> None:
        """Say what each row does in the step that begins."""
        held, options = self.held, buffers.options
        plan_held_kernel[(self.shape.max_rows,)](
            request_rows, lengths, options, buffers.ratios, held.asked, held.records,
            held.formulas, held.counts, held.does, held.places, held.drafts,
            request_rows.numel(), self.room.units, options.stride(0), UNIT=self.shape.unit_size,
        )  # fmt: skip

    def choose(self, layer: int, rows: int, buffers: "StepBuffers", watched: bool) -> None:
        """Choose from what is held, for the rows that do, in place of what was selected."""
        held, plan, marks, cover = self.held, buffers.plan, buffers.marks, buffers.cover
        choose_held_kernel[(rows, self.shape.heads)](
            buffers.table, *plan[1:5], *plan[6:8], held.does, held.places, held.drafts,
            buffers.selected, buffers.logical, buffers.offsets, marks,
            held.counts if cover is None else cover.chosen, held.drawn, held.keys, held.units,
            layer, layer - self.room.first_layer, self.room.layers, self.shape.max_rows,
            self.room.units, self.shape.max_selected, buffers.table.stride(0), marks.stride(1),
            CHUNK=HELD_CHUNK, LOGICAL=watched, MARKED=self.shape.estimates,
            COVERS=cover is not None, num_warps=HELD_WARPS, **early(),
        )  # fmt: skip

    def commit(self) -> None:
        """Behind the last layer: what was chosen for a period is held."""
        held = self.held
        commit_held_kernel[(self.shape.max_rows,)](
            held.does, held.places, held.drafts, held.records
        )
