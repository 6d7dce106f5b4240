"""Static buffers of rows that ask for a coverage."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.geometry import ceil_div
from sgl_sparsekv.types import StepShape

from .launch import processors
from .spec import SAMPLE_TOKENS, SAMPLE_UNITS
from .tuning import COVER_CHUNK, COVER_RESIDENT


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
        sample: what launches of `cover` leave to the next.
        chosen, told: see `cover.count_kernel`.
    """

    asked: torch.Tensor
    goals: torch.Tensor
    known: torch.Tensor
    sample: "SampleBuffers"
    chosen: torch.Tensor
    told: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in vars(self).values())


@dataclass(frozen=True)
class SampleBuffers:
    """What launches of `cover` leave to the next: see their arguments of these names.

    Attributes:
        highests, lowests: float32 `[rows, H, chunks]`.
        sums: float64 `[rows, H, chunks]`.
        drawn: int32 `[rows, H, SIZE]`.
        lses: float32 `[rows, H, SIZE, G]`.
        shares: float32 `[rows, H, 2, SIZE]`.
        thresholds: float32 `[rows, H]`.
        above, tickets: int32 `[rows, H]`, zero between launches.
        chunk: units of a chunk.
    """

    highests: torch.Tensor
    lowests: torch.Tensor
    sums: torch.Tensor
    drawn: torch.Tensor
    lses: torch.Tensor
    shares: torch.Tensor
    thresholds: torch.Tensor
    above: torch.Tensor
    tickets: torch.Tensor
    chunk: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = vars(self).values()
        return sum(part.nbytes for part in held if isinstance(part, torch.Tensor))

    @property
    def chunks(self) -> int:
        """Of the longest row."""
        return self.sums.shape[2]

    @property
    def size(self) -> int:
        """Units of the largest sample."""
        return self.drawn.shape[2]

    def programs(self, rows: int) -> int:
        """Of each of so many rows and each KV head: as many as the GPU holds at once, at most."""
        room = COVER_RESIDENT * processors() // max(1, rows * self.sums.shape[1])
        return max(1, min(self.chunks, room))


def allocate_sample(
    rows: int, heads: int, group: int, ranked: int, size: int, device: torch.device
) -> SampleBuffers:
    """Buffers for rows of up to `ranked` units and samples of `size`."""
    chunks = ceil_div(max(1, ranked), COVER_CHUNK)

    def zeros(*extents: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(rows, heads, *extents, dtype=dtype, device=device)

    whole = torch.int32
    return SampleBuffers(
        zeros(chunks), zeros(chunks), zeros(chunks, dtype=torch.float64), zeros(size, dtype=whole),
        zeros(size, group), zeros(2, size), zeros(), zeros(dtype=whole), zeros(dtype=whole),
        COVER_CHUNK,
    )  # fmt: skip


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
        sample=allocate_sample(rows, heads, group, shape.most_ranked, size, shape.device),
        chosen=zeros(rows, heads, dtype=torch.int32),
        told=zeros(rows, len(shape.covered), heads, dtype=torch.int32),
    )
