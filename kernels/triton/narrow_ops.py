"""Rows of single tokens as a part of `fused`: the two launches of `narrow` behind `select`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import triton
from sgl_sparsekv.types import StepShape

from .launch import early, processors
from .narrow import narrow_kernel, place_kernel
from .radix import BINS
from .spec import SINGLE
from .tuning import NARROW_REGISTERS, NARROW_WARPS, SELECT_CHUNK, next_power, score_chunks

LEAST_CHUNKS = 32
"""Of a row, that are counted side by side: a histogram has a place for every thread of a warp."""


@dataclass(frozen=True)
class NarrowBuffers:
    """What is known of long rows between their launches, in one layer.

    Attributes:
        bins: int32 `[max_rows, H, BINS]`, keys counted; zero between layers.
        of_chunks: int32 `[max_rows, H, 3, chunks]`, see `narrow_kernel`.
        open_count: int32 `[max_rows, H]`, keys in the bin that is looked into; zero between layers.
        leasts: int32 `[max_rows, H]`, the lowest key that is kept.
    """

    bins: torch.Tensor
    of_chunks: torch.Tensor
    open_count: torch.Tensor
    leasts: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in vars(self).values())


def is_narrowed(ranked: int, count: int) -> bool:
    """Whether rows of up to `ranked` units, `count` of them kept, are chosen in three launches.

    They are where one program does not hold what all chunks would keep.
    """
    chunks = triton.cdiv(ranked, SELECT_CHUNK)
    return chunks > 1 and chunks * min(count, SELECT_CHUNK) > SELECT_CHUNK


def are_narrowed(shape: StepShape) -> bool:
    """Whether those of a server are: where rows choose among single tokens and keep as many."""
    return bool(shape.formulas & SINGLE) and shape.most_ranked > SELECT_CHUNK


def allocate_narrow(rows: int, heads: int, ranked: int, device: torch.device) -> NarrowBuffers:
    """Buffers of rows of up to `ranked` units."""

    def zeros(*extents: int) -> torch.Tensor:
        return torch.zeros((rows, heads, *extents), dtype=torch.int32, device=device)

    chunks = next_power(triton.cdiv(ranked, SELECT_CHUNK))
    return NarrowBuffers(zeros(BINS.value), zeros(3, max(LEAST_CHUNKS, chunks)), zeros(), zeros())


def narrow_and_place(
    held: NarrowBuffers,
    best: torch.Tensor,
    tickets: torch.Tensor,
    rows_of: Sequence[torch.Tensor],
    lists: Sequence[torch.Tensor],
    marks: torch.Tensor | None,
    chosen: torch.Tensor | None,
    holding: tuple[torch.Tensor, torch.Tensor] | None,
    numbers: tuple[int, int, int],
    watched: bool,
) -> None:
    """The launches behind a `select` that left keys.

    Args:
        held: buffers of these rows.
        best, tickets: of `select_kernel`.
        rows_of: table, formulas, begins, ends, num_units, counts, dense_layers and finers of it.
        lists: physical, logical and offsets of it.
        marks: read of it; None where nobody is to know what is kept.
        chosen: of it, in place of the counts; None where KV heads keep as many.
        holding: does and drawn of it; None where no row holds what it chooses.
        numbers: layer, widest and entry_scale of it.
        watched: whether logical units are written.
    """
    table, formulas, _, _, num_units, counts, dense_layers, finers = rows_of
    (rows,), heads, chunks = formulas.shape, best.shape[1], best.shape[3] // SELECT_CHUNK
    layer, widest, entry_scale = numbers
    grid = (rows, heads, score_chunks(rows, heads, chunks, 1, processors()))
    how = {
        "CHUNK": SELECT_CHUNK, "CHUNKS": held.of_chunks.shape[3], "num_warps": NARROW_WARPS,
        **early(),
    }  # fmt: skip
    narrow_kernel[grid](
        formulas, num_units, counts if chosen is None else chosen, dense_layers, best, held.bins,
        held.of_chunks, held.open_count, held.leasts, tickets, layer, best.shape[3],
        COVERS=chosen is not None, maxnreg=NARROW_REGISTERS, **how,
    )  # fmt: skip
    read = held.leasts if marks is None else marks
    place_kernel[grid](
        table, formulas, num_units, dense_layers, finers, *lists, best, held.of_chunks,
        held.leasts, read, *(holding or (tickets, tickets)), layer, best.shape[3], widest,
        table.stride(0), read.stride(1), entry_scale, LOGICAL=watched, MARKED=marks is not None,
        HELD=holding is not None, **how,
    )  # fmt: skip
