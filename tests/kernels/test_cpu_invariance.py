"""A row gives the same bits alone, in any batch, and with any number of threads."""

from collections.abc import Iterator

import pytest
import torch
from cases import Batch, make_batch
from sgl_sparsekv.kernels.cpu.ops import CpuOps

from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Reduction


@pytest.fixture
def threads() -> Iterator[int]:
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def decode(ops: CpuOps, batch: Batch) -> list[torch.Tensor]:
    """Everything one decode layer computes, with a budget of 40 units."""
    results = []
    for summary in (Quest.summary, MeanStd.summary):
        fields = torch.full((batch.keys.shape[0] // 16, 2, 2, 128), torch.nan).to(batch.q.dtype)
        full = torch.cat([batch.table[r, : n // 16] for r, n in enumerate(batch.lengths)])
        ops.summarise(summary, batch.keys, fields, full.long())
        for reduction in Reduction:
            scores = ops.score(summary, batch.q, fields, batch.candidates, 0.09, reduction)
            counts = batch.num_units.clamp(max=40)
            chosen = ops.select(scores, batch.candidates, batch.num_units, counts)
            args = (chosen.physical, counts, batch.tails, 0.09, 16)
            results += [
                scores,
                chosen.logical,
                *ops.attend(batch.q, batch.keys, batch.values, *args),
            ]
    shared = batch.table[:, None].expand(-1, 2, -1)
    args = (shared, batch.num_units, batch.tails, 0.09, 16)
    return [*results, *ops.attend(batch.q, batch.keys, batch.values, *args)]


def same_bits(row: torch.Tensor, alone: torch.Tensor) -> bool:
    """Equal up to the width of the batch's widest row."""
    if row.shape != alone.shape:  # the wider batch pads the last dimension
        width = alone.shape[-1]
        row = row[..., :width]
    return torch.equal(row, alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_do_not_depend_on_batch_or_threads(ops: CpuOps, dtype: torch.dtype, threads: int):
    batch = make_batch([2600, 40, 1, 1111], heads=2, group=4, dim=128, dtype=dtype)
    together = decode(ops, batch)
    for count in (1, 3):
        torch.set_num_threads(count)
        for one, other in zip(together, decode(ops, batch), strict=True):
            assert torch.equal(one, other)
    torch.set_num_threads(threads)
    for row in range(len(batch.lengths)):
        for one, other in zip(together, decode(ops, batch.alone(row)), strict=True):
            assert same_bits(one[row], other[0])


def test_empty_inputs(ops: CpuOps):
    batch = make_batch([20], dim=128)
    fields = torch.zeros(batch.keys.shape[0] // 16, 2, 2, 128)
    ops.summarise(Quest.summary, batch.keys, fields, torch.empty(0, dtype=torch.int64))
    assert not fields.any()
    none = Batch(batch.q[:0], batch.keys, batch.values, [], batch.table[:0], 16)
    scores = ops.score(Quest.summary, none.q, fields, none.candidates, 1.0, Reduction.MAX_SOFTMAX)
    chosen = ops.select(scores, none.candidates, none.num_units, none.num_units)
    out, lse = ops.attend(
        none.q, batch.keys, batch.values, chosen.physical, none.num_units, none.tails, 1.0, 16
    )
    assert scores.shape[:2] == (0, 2) and out.shape == (0, 2, 4, 128) and lse.shape == (0, 2, 4)
