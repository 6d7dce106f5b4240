"""Static buffers of rows that ask for a coverage."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.types import StepShape

from .spec import SAMPLE_TOKENS, SAMPLE_UNITS


def sample_room(finest: int) -> int:
    """Units of the largest sample, where the smallest that is served has so many tokens."""
    return max(SAMPLE_UNITS, SAMPLE_TOKENS // finest)


@dataclass(frozen=True)
class CoverBuffers:
    """What rows ask to be covered, and how much they read for it.

    Attributes:
        asked: float32 `[requests]`, share of attention by row of `req_to_token`, 0 for none.
        goals: float32 `[max_rows]`, of the rows of a step.
        known: float32 `[max_rows, H, G]`, see `known_kernel`.
        lses, lowests, chosen, told: see `cover_kernel`.
    """

    asked: torch.Tensor
    goals: torch.Tensor
    known: torch.Tensor
    lses: torch.Tensor
    lowests: torch.Tensor
    chosen: torch.Tensor
    told: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in vars(self).values())


def allocate_cover(shape: StepShape) -> CoverBuffers | None:
    """Buffers of a server that serves `coverage`; None: it does not."""
    if not shape.covered:
        return None
    rows, heads, group = shape.max_rows, shape.heads, shape.group
    size = sample_room(shape.finest or shape.unit_size)

    def zeros(*extents: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(extents, dtype=dtype, device=shape.device)

    return CoverBuffers(
        asked=zeros(shape.requests),
        goals=zeros(rows),
        known=zeros(rows, heads, group),
        lses=zeros(rows, heads, size, group),
        lowests=zeros(rows, heads),
        chosen=zeros(rows, heads, dtype=torch.int32),
        told=zeros(rows, len(shape.covered), heads, dtype=torch.int32),
    )
