"""A row gives the same bits alone, in any batch, whoever shares its prefix, on any threads."""

from collections.abc import Iterator

import pytest
import torch
from cases import Batch, make_batch
from sgl_sparsekv.kernels.cpu.ops import CpuOps

from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.shadowkv import LANDMARK
from sgl_sparsekv.types import Candidates, Reduction


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


def sharing(batch: Batch, parents: dict[int, tuple[int, int]]) -> Batch:
    """The batch with rows that begin with units of another: row -> its parent, and how many.

    What is nobody's afterwards is NaN.
    """
    for row, (parent, units) in parents.items():
        batch.table[row, :units] = batch.table[parent, :units]
    owned = [batch.table[row, :count] for row, count in enumerate(batch.num_units.tolist())]
    spare = torch.ones(batch.keys.shape[0] // 16, dtype=torch.bool)
    spare[torch.cat(owned).long()] = False
    for pool in (batch.keys, batch.values):
        pool[spare.repeat_interleave(16)] = torch.nan
        for row in parents:  # which may be longer than whose last page it has
            slots = batch.slots(row)
            pool[slots] = torch.where(pool[slots].isnan(), 0.5, pool[slots])
    return batch


def everything_that_is_ranked(ops: CpuOps, batch: Batch) -> list[torch.Tensor]:
    """Scores by every formula, and attention over all."""
    results = []
    heads, dim = batch.keys.shape[1:]
    full = [batch.table[r, : n // 16] for r, n in enumerate(batch.lengths)]
    begin = batch.num_units % 13  # rows keep sinks of several sizes
    spans = Candidates(batch.table, begin, torch.maximum(begin, batch.num_units - 3))
    args = (spans, 0.09, Reduction.MAX_SOFTMAX)
    for summary in (Quest.summary, Quest.shares, MeanStd.summary, LANDMARK):
        planes = len(summary.planes)
        fields = torch.full((len(batch.keys) // 16, heads, planes, dim), torch.nan)
        fields = fields.to(batch.q.dtype)
        ops.summarise(summary, batch.keys, fields, torch.cat(full).long())
        results.append(ops.score(summary, batch.q, fields, *args))
    results.append(ops.score_exact(batch.q, batch.keys, *args, 16))
    shared = batch.table[:, None].expand(-1, heads, -1)
    tail = (batch.num_units, batch.tails, 0.09, 16)
    return [*results, *ops.attend(batch.q, batch.keys, batch.values, shared, *tail)]


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


LENGTHS = [2600, 2900, 1111, 40, 1, 2600]
PREFIXES = {
    "branches": (LENGTHS, {1: (0, 150), 2: (1, 33), 3: (2, 2), 5: (0, 163)}),
    "one prefix": (LENGTHS, dict.fromkeys((1, 2, 5), (0, 66))),
    "a chain": (LENGTHS, {1: (0, 64), 2: (1, 69), 5: (2, 65)}),
    "rows apart": (LENGTHS, {2: (0, 60), 5: (1, 128)}),
    "one last page": ([1016, 1020, 1024, 600], {1: (0, 64), 2: (0, 64)}),
    "windows in common": ([2080, 2600, 2090, 700], {1: (0, 130), 2: (0, 130)}),
}
"""Lengths, and row -> whom it shares with, and how many units: whole blocks and parts, all that a
row has, branches of branches, and rows between which others stand; last pages that rows have filled
differently; and pages that one ranks while they are in the window of another."""


@pytest.mark.parametrize(("lengths", "parents"), PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize(
    ("dtype", "group"), [(torch.bfloat16, 4), (torch.float16, 7), (torch.float32, 1)], ids=str
)
def test_bits_do_not_depend_on_who_shares_a_prefix(
    ops: CpuOps,
    dtype: torch.dtype,
    group: int,
    lengths: list[int],
    parents: dict[int, tuple[int, int]],
    threads: int,
) -> None:
    """In the batch's order and in another, where other rows are neighbours."""
    batch = sharing(make_batch(lengths, 2, group, 64, dtype), parents)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(3))
    again = Batch(
        *(batch.q[order], batch.keys, batch.values, [lengths[row] for row in order.tolist()]),
        *(batch.table[order], 16),
    )
    alone = [everything_that_is_ranked(ops, batch.alone(row)) for row in range(len(lengths))]
    for count in (1, 2):
        torch.set_num_threads(count)
        together, reordered = (everything_that_is_ranked(ops, one) for one in (batch, again))
        for place, row in enumerate(order.tolist()):
            for one, other, expected in zip(together, reordered, alone[row], strict=True):
                assert same_bits(one[row], expected[0])
                assert same_bits(other[place], expected[0])


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
