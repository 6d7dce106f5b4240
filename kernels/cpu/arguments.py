"""Arguments of the kernels, from tensors: what several of `args.h`'s structs begin with."""

import torch

from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

from .library import DTYPES

REDUCTIONS = {Reduction.MAX_SOFTMAX: 0, Reduction.MEAN_SOFTMAX: 1, Reduction.MAX: 2}
"""`Reduction` of args.h."""


def attend_args(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    listed: tuple[torch.Tensor, ...],
    scale: float,
    unit_size: int,
) -> tuple[float, ...]:
    """`AttendArgs` of args.h; listed are table, counts, tails, and what is written to."""
    (keys, values), (table, counts, tails, out, lse) = cache, listed
    rows, heads, group, dim = q.shape
    return (
        *(q.data_ptr(), keys.data_ptr(), values.data_ptr(), table.data_ptr(), counts.data_ptr()),
        *(tails.data_ptr(), 0, out.data_ptr(), lse.data_ptr()),
        *(rows, heads, group, dim, values.shape[-1], table.shape[2], unit_size, dtype_of(q, keys)),
        *(torch.get_num_threads(), *strides_of(q=q)[:3], *strides_of(keys=keys)[:2]),
        *(*strides_of(values=values)[:2], *strides_of(table=table)[:2], *counts.stride(), scale),
    )


def sample_args(
    scores: torch.Tensor,
    inputs: ScoreInputs,
    spans: Candidates,
    coverage: torch.Tensor,
    size: int,
    lowest: int,
) -> tuple[float, ...]:
    """`SampleArgs` of args.h; spans are the inputs' candidates."""
    q, keys, known, table = inputs.q, inputs.keys, inputs.known, spans.unit_table
    dtype = dtype_of(q, keys)
    assert known is not None and known.is_contiguous() and scores.is_contiguous()
    rows, heads, group, dim = q.shape
    return (
        *(q.data_ptr(), keys.data_ptr(), scores.data_ptr(), table.data_ptr()),
        *(spans.begin.data_ptr(), spans.end.data_ptr(), known.data_ptr(), coverage.data_ptr()),
        *(lowest, rows, heads, group, dim, scores.shape[-1], inputs.unit_size, size, dtype),
        *(torch.get_num_threads(), *strides_of(q=q)[:3], *strides_of(keys=keys)[:2]),
        *(strides_of(unit_table=table)[0], inputs.scale),
    )


def code_args(
    q: torch.Tensor,
    index: SegmentIndex | ResidualIndex,
    candidates: Candidates,
    scale: float,
    width: int,
) -> tuple[float, ...]:
    """What `CodeArgs` of args.h begins with: queries, records, and the tokens to rank."""
    spans, codes, books, table = candidates.unit_table, index.codes, index.codebooks, index.table
    begin, end = candidates.begin, candidates.end
    assert begin.is_contiguous() and end.is_contiguous()
    assert codes.is_contiguous() and books.is_contiguous()
    rows, heads, group, dim = q.shape
    if isinstance(index, ResidualIndex):
        own = (index.centroids, index.scales, index.labels, index.places, index.ends)
        assert all(one.is_contiguous() for one in own)
        clusters = tuple(one.data_ptr() for one in own)
    else:
        assert books.dtype is q.dtype
        clusters = (0,) * 5
    return (
        *(q.data_ptr(), books.data_ptr(), codes.data_ptr(), *clusters, table.data_ptr()),
        *(spans.data_ptr(), begin.data_ptr(), end.data_ptr(), rows, heads, group, dim, width),
        *(table.shape[1], index.segment_size, books.shape[2], index.entries, DTYPES[q.dtype]),
        *(torch.get_num_threads(), *strides_of(q=q)[:3], strides_of(table=table)[0]),
        *(strides_of(unit_table=spans)[0], scale),
    )


def address(known: torch.Tensor | None, reduction: Reduction) -> int:
    """Of what joins the softmax; 0 for nothing."""
    assert known is None or (known.is_contiguous() and reduction is not Reduction.MAX)
    return 0 if known is None else known.data_ptr()


def strides_of(**named: torch.Tensor) -> tuple[int, ...]:
    """Of one tensor: the kernels walk the last dimension as one run of memory.

    Raises:
        ValueError: its last dimension is not contiguous.
    """
    [(name, tensor)] = named.items()
    strides = tensor.stride()
    if strides[-1] != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} must be contiguous in its last dimension")
    return strides


def dtype_of(q: torch.Tensor, data: torch.Tensor) -> int:
    """`DType` of simd.h: queries and the pool share an element type.

    Raises:
        ValueError: they do not.
    """
    if q.dtype is not data.dtype:
        raise ValueError(f"q must have the pool's dtype {data.dtype}, got {q.dtype}")
    return DTYPES[q.dtype]
