"""A sample of keys tells the CPU kernels what it tells the reference."""

from dataclasses import replace

import pytest
import torch
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.types import Candidates, Goal, KeptUnits, Reduction, ScoreInputs

REFERENCE = load_reference()
SIZE = 16


def scene(
    seed: int, dtype: torch.dtype, unit: int, group: int, dim: int
) -> tuple[torch.Tensor, ScoreInputs]:
    """Scores and what they were made from. Odds are whole numbers with an odd sum, so that no point
    of the sample lies where float32 rounds to one side or the other."""
    draw = torch.Generator().manual_seed(seed)
    rows, heads, width = 1 + seed % 3, 1 + seed % 2, 30 + 97 * (seed % 7)
    begin = torch.tensor([1, 0, 5][:rows], dtype=torch.int32)
    end = torch.tensor([width - 2, width, width // 2][:rows], dtype=torch.int32)
    place = torch.arange(width)
    inside = ((place >= begin[:, None]) & (place < end[:, None]))[:, None].expand(-1, heads, -1)
    odds = torch.randint(1, 9, (rows, heads, width), generator=draw).masked_fill(~inside, 0)
    even = odds.sum(-1) % 2 == 0
    odds.scatter_add_(-1, begin.long()[:, None, None].expand(-1, heads, 1), even.long()[..., None])
    table = torch.stack([torch.randperm(width, generator=draw) for _ in range(rows)]).int()
    keys = torch.randn(width * unit, heads, dim, generator=draw).to(dtype)
    q = torch.randn(rows, heads, group, dim, generator=draw).to(dtype)
    counts = torch.full((rows,), width, dtype=torch.int32)
    scores = 3 * odds.double().log() - 9
    return scores.float(), ScoreInputs(
        q=q, keys=keys, fields={}, index=None, candidates=Candidates(table, begin, end),
        num_units=counts, counts=counts, scale=dim**-0.5, reduction=Reduction.MEAN_SOFTMAX,
        unit_size=unit, known=torch.randn(rows, heads, group, generator=draw),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("unit", "group", "dim"), [(1, 1, 64), (16, 4, 128), (3, 7, 80)])
def test_it_is_as_the_reference_says(
    ops: CpuOps, dtype: torch.dtype, unit: int, group: int, dim: int
) -> None:
    for seed in range(14):
        scores, inputs = scene(seed, dtype, unit, group, dim)
        coverage = torch.tensor([0.9, 0.5, 0.99])[: len(scores)]
        want = REFERENCE.sample(scores, inputs, coverage, SIZE)
        got = ops.sample(scores.clone(), inputs, coverage, SIZE)
        torch.testing.assert_close(got.scores, want.scores, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(got.lowest, want.lowest, atol=2e-3, rtol=1e-3)


def test_everything_nothing_and_rows_without_candidates(ops: CpuOps) -> None:
    scores, inputs = scene(2, torch.float32, 1, 2, 64)
    whole = replace(inputs, known=inputs.known + 20)
    coverage = torch.tensor([1.0, 0.9, 0.9])
    got = ops.sample(scores.clone(), whole, coverage, SIZE)
    assert (got.lowest[0] == -torch.inf).all() and (got.lowest[1:] == torch.inf).all()
    none = replace(inputs, candidates=replace(inputs.candidates, begin=inputs.candidates.end))
    empty = torch.full_like(scores, -torch.inf)
    got = ops.sample(empty.clone(), none, coverage, SIZE)
    assert torch.equal(got.scores, empty) and (got.lowest[1:] == torch.inf).all()


def test_scores_that_are_no_numbers_are_never_drawn(ops: CpuOps) -> None:
    scores, inputs = scene(6, torch.float32, 1, 2, 64)
    scores[:, :, 10], scores[:, :, 11] = torch.nan, torch.inf
    asked, keys = torch.tensor([0.9]), inputs.keys.clone()
    plain = ops.sample(scores.clone(), inputs, asked, 128)
    keys[inputs.candidates.unit_table[0, 10:12].long()] = torch.nan
    poisoned = replace(inputs, keys=keys)
    got = ops.sample(scores.clone(), poisoned, asked, 128)
    want = REFERENCE.sample(scores, poisoned, asked, 128)
    assert torch.equal(got.lowest, plain.lowest)
    torch.testing.assert_close(got.lowest, want.lowest, atol=2e-3, rtol=1e-3)


def test_a_row_is_sampled_alike_alone(ops: CpuOps) -> None:
    scores, inputs = scene(2, torch.bfloat16, 16, 4, 128)
    asked = torch.tensor([0.9, 0.8, 0.95])
    both = ops.sample(scores.clone(), inputs, asked, SIZE)
    one = replace(
        inputs, q=inputs.q[1:2], known=inputs.known[1:2],
        candidates=Candidates(*(part[1:2] for part in vars(inputs.candidates).values())),
    )  # fmt: skip
    alone = ops.sample(scores[1:2].clone(), one, asked[1:2], SIZE)
    assert torch.equal(alone.scores[0], both.scores[1])
    assert torch.equal(alone.lowest[0], both.lowest[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("unit", "group", "dim"), [(1, 1, 64), (16, 4, 128), (3, 7, 80)])
def test_what_is_read_in_any_case_is_known(
    ops: CpuOps, dtype: torch.dtype, unit: int, group: int, dim: int
) -> None:
    for seed in range(14):
        _, inputs = scene(seed, dtype, unit, group, dim)
        kept = KeptUnits.of(inputs.candidates, inputs.num_units)
        if int(kept.counts.min()) == 0:
            kept = replace(kept, counts=kept.counts.clamp(min=1))
        keys, tails = inputs.keys.clone(), torch.full_like(kept.counts, 1 + seed % unit)
        listed = [set(row[:n].tolist()) for row, n in zip(kept.table, kept.counts, strict=True)]
        unread = [u for u in range(len(keys) // unit) if u not in set.union(*listed)]
        keys.view(-1, unit, *keys.shape[1:])[unread] = torch.nan
        how = (kept, tails, inputs.scale, unit)
        want = REFERENCE.known(inputs.q, keys, *how)
        torch.testing.assert_close(ops.known(inputs.q, keys, *how), want, atol=1e-5, rtol=1e-5)
        one = KeptUnits(kept.table[-1:], kept.counts[-1:])
        alone = ops.known(inputs.q[-1:], keys, one, tails[-1:], *how[2:])
        assert torch.equal(alone[0], ops.known(inputs.q, keys, *how)[-1])


@pytest.mark.parametrize("pooled", [0, 1])
def test_covering_is_sampling_allotting_and_selecting(ops: CpuOps, pooled: int) -> None:
    for seed in range(14):
        scores, inputs = scene(seed, torch.bfloat16, 16, 4, 128)
        rows = len(scores)
        always = inputs.num_units - (inputs.candidates.end - inputs.candidates.begin)
        inputs = replace(inputs, counts=always + 2 * seed)
        goal = Goal(torch.tensor([0.9, 0.5, 1.0])[:rows], torch.full((rows,), pooled).int())
        got = ops.cover(scores.clone(), inputs, goal, SIZE)
        ranking = ops.sample(scores.clone(), inputs, goal.coverage, SIZE)
        units = (inputs.candidates, inputs.num_units)
        how = (inputs.counts, ranking.lowest, goal.pooled)
        counts = ops.allot(ranking.scores, *units, *how)
        want = ops.select(ranking.scores, *units, counts)
        assert torch.equal(got.counts, counts) and torch.equal(got.logical, want.logical), seed
        assert torch.equal(got.physical, want.physical), seed
