"""Rows that look at units in the best segments alone, as a part of `fused`: launches of `levels`.

segments   one launch a layer, where such a method is served
pages      one, and another where the exact method is served
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import triton
from sgl_sparsekv.types import StepShape

from .launch import early, interpreted, processors
from .levels import FIRST, SINCE, pages_kernel, segments_kernel
from .spec import LEVELS, SEGMENT, SEGMENT_BOUNDS
from .tuning import Tuning, next_power, score_chunks

if TYPE_CHECKING:
    from .buffers import StepBuffers

RANKS_CHUNK = 1024
"""Ranks that one program looks at together, for the lowest that is kept."""


@dataclass(frozen=True)
class LevelBuffers:
    """What is known of segments, in one layer.

    Attributes:
        bounds: float32 `[max_rows, H, segments]`.
        opened: int32 `[max_rows, H, segments]`, see `levels.segments_kernel`.
    """

    bounds: torch.Tensor
    opened: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.bounds.nbytes + self.opened.nbytes


def allocate_levels(shape: StepShape) -> LevelBuffers | None:
    """Buffers of the largest step; None where no served method has two levels."""
    if not shape.formulas & LEVELS:
        return None
    segments = triton.cdiv(shape.max_units * shape.unit_size, SEGMENT)
    extents = (shape.max_rows, shape.heads, segments)
    bounds = torch.zeros(extents, dtype=torch.float32, device=shape.device)
    return LevelBuffers(bounds, torch.zeros_like(bounds, dtype=torch.int32))


class LevelRows:
    """Ranks of the rows of a server's steps that have two levels.

    Args:
        shape: of the steps.
        tuned: constants of this machine.
        held: buffers of the levels.
    """

    def __init__(self, shape: StepShape, tuned: Tuning, held: LevelBuffers) -> None:
        self.shape, self.tuning, self.held = shape, tuned, held
        self._kind = [kind.summary.name for kind in shape.records].index(SEGMENT_BOUNDS)
        self._exact = "two_level_exact" in shape.formulas

    def rank(
        self,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        fields: torch.Tensor,
        planes: torch.Tensor,
        buffers: "StepBuffers",
        scale: float,
    ) -> None:
        """Leave logits and parts, or final ranks, in the buffers of the steps.

        Args:
            layer, q, keys, scale: as of `FusedDecode.decode`.
            fields: `[pool units, H, 2, D]`, bounds of units.
            planes: `[records, H, 2, D]`, bounds of segments.
            buffers: of the steps.
        """
        (rows, heads, group, dim), unit = q.shape, self.shape.unit_size
        tuned, plan, held, formulas = self.tuning, buffers.plan, self.held, buffers.formulas
        assert buffers.records is not None
        records, segments = buffers.records.table[self._kind], held.bounds.shape[2]

        def chunks(blocks: int) -> int:
            return score_chunks(rows, heads, blocks, 1, processors())

        how = {
            "GROUP": group, "DIM": dim, "UNIT": unit, "BLOCK": tuned.score_units,
            "WIDEST": next_power(segments), "UPCAST": interpreted(),
            "num_warps": tuned.score_warps, "maxnreg": tuned.score_registers, **early(),
        }  # fmt: skip
        segments_kernel[(rows, heads, chunks(triton.cdiv(segments, tuned.score_units)))](
            q, planes, records, formulas, plan[1], plan[2], plan[4], plan[6], held.bounds,
            held.opened, buffers.tickets, scale, layer, segments, *q.stride()[:3],
            *planes.stride()[:3], records.stride(0), **how,
        )  # fmt: skip
        blocks = triton.cdiv(self.shape.max_units, tuned.score_units)
        for nth in (FIRST.value, SINCE.value) if self._exact else (FIRST.value,):
            pages_kernel[(rows, heads, chunks(blocks))](
                q, keys, fields, buffers.table, formulas, *plan[1:5], plan[6], held.bounds,
                held.opened, buffers.logits, buffers.parts, buffers.ranks, buffers.tickets, scale,
                layer, buffers.parts.shape[2], buffers.logits.shape[3], buffers.ranks.shape[2],
                segments, *q.stride()[:3], *keys.stride()[:2], *fields.stride()[:3],
                buffers.table.stride(0), ROUND=nth, HAS_EXACT=self._exact, CHUNK=RANKS_CHUNK,
                STAGES=tuned.score_stages, **how,
            )  # fmt: skip
