"""Random segment records over the rows of a batch, and keys with structure to index."""

from dataclasses import replace

import torch
from cases import Batch, make_batch

from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.summaries import CodeSummary


def make_coded(
    lengths: list[int],
    heads: int,
    group: int,
    dim: int,
    dtype: torch.dtype,
    segment: int,
    parts: int,
    codes: int,
) -> tuple[Batch, SegmentIndex]:
    """Rows whose whole segments have random codes, but every third one has no record.

    Keys of coded tokens are NaN: they must not be read.
    """
    batch = make_batch(lengths, heads, group, dim, dtype, unit_size=1)
    rng = torch.Generator().manual_seed(codes)
    counts = [length // segment for length in lengths]
    records = sum(counts) + 2
    table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    order = torch.randperm(records, generator=rng).int()
    for row, count in enumerate(counts):
        table[row, :count] = order[sum(counts[:row]) :][:count]
        table[row, 1 + row % 2 : count : 3] = -1
        for nth in torch.nonzero(table[row] >= 0).flatten().tolist():
            batch.keys[batch.slots(row)[nth * segment : (nth + 1) * segment]] = torch.nan
    shape = (records, heads, parts)
    index = SegmentIndex(
        torch.randint(0, codes, (*shape, segment), generator=rng).to(torch.uint8),
        torch.randn(*shape, codes, dim // parts, generator=rng).to(dtype),
        table,
    )
    return batch, index


def row_of(batch: Batch, index: SegmentIndex, row: int) -> tuple[Batch, SegmentIndex]:
    """The batch of this row only, its table as narrow as its segments."""
    whole = batch.lengths[row] // index.segment_size
    return batch.alone(row), replace(index, table=index.table[row : row + 1, :whole])


def bunches(tokens: int, heads: int, dim: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Keys `[tokens, H, D]` around eight centres of unequal weight, two channels larger."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, heads, dim, generator=rng)
    centres[..., :2] *= 5
    which = torch.randint(0, 64, (tokens,), generator=rng).float().sqrt().long()
    return (centres[which] + 0.5 * torch.randn(tokens, heads, dim, generator=rng)).to(dtype)


def empty_index(summary: CodeSummary, records: int, keys: torch.Tensor) -> SegmentIndex:
    """Records that hold nothing yet: every code 255, every centroid NaN."""
    _, heads, dim = keys.shape
    shape = (records, heads, summary.subspaces)
    books = keys.new_full((*shape, summary.codes, dim // summary.subspaces), torch.nan)
    codes = torch.full((*shape, summary.segment_size), 255, dtype=torch.uint8)
    return SegmentIndex(codes, books, torch.empty(0, 0, dtype=torch.int32))


def distances(
    keys: torch.Tensor, codes: torch.Tensor, codebook: torch.Tensor, cosine: bool
) -> torch.Tensor:
    """Distance of every key from every centroid, float64 `[H, m, S, K]`.

    Args:
        keys: `[S, H, D]`.
        codes: uint8 `[H, m, S]`, for its shape.
        codebook: `[H, m, K, D / m]`.
        cosine: 1 - cosine in place of the squared distance; a row of zeros has cosine 0.
    """
    parts = keys.double().movedim(0, 1).unflatten(-1, (codes.shape[1], -1)).movedim(2, 1)
    centroids = codebook.double()
    if cosine:
        unit = [torch.nn.functional.normalize(x, dim=-1) for x in (parts, centroids)]
        return 1 - unit[0] @ unit[1].mT
    return (parts[..., None, :] - centroids[..., None, :, :]).square().sum(-1)
