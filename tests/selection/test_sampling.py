"""A sample of the candidates tells how far to read, whatever the scores claim."""

from dataclasses import replace

import pytest
import torch
from sgl_sparsekv.kernels.reference.sample import systematic, threshold

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection.sampling import sample_size, sampled_ranking
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

REFERENCE, CPU = load_ops("reference"), load_ops("cpu")
HEADS, GROUP, DIM, BEGIN = 2, 3, 16, 2


def inputs(rows: int, units: int, unit: int, sharp: float, seed: int = 0) -> ScoreInputs:
    """Rows that read `BEGIN` units and the last one in any case."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(units * unit, HEADS, DIM, generator=draw)
    q = sharp * torch.randn(rows, HEADS, GROUP, DIM, generator=draw)
    every = torch.arange(units, dtype=torch.int32).expand(rows, -1).contiguous()
    begin, end = torch.full((rows,), BEGIN).int(), torch.full((rows,), units - 1).int()
    whole = torch.full((rows,), units).int()
    scale, span = DIM**-0.5, Candidates(every, begin, end)
    kept = torch.tensor([*range(BEGIN), units - 1]).int().expand(rows, HEADS, -1)
    tails = torch.full((rows,), unit).int()
    count = torch.full((rows,), BEGIN + 1).int()
    known = REFERENCE.attend(q, keys, keys, kept, count, tails, scale, unit)[1]
    return ScoreInputs(
        q=q, keys=keys, fields={}, index=None, candidates=span, num_units=whole, counts=whole,
        scale=scale, reduction=Reduction.MEAN_SOFTMAX, unit_size=unit, known=known,
    )  # fmt: skip


def true_scores(given: ScoreInputs) -> torch.Tensor:
    """Logs of true shares."""
    how = (given.scale, given.reduction, given.unit_size, given.known)
    return CPU.score_exact(given.q, given.keys, given.candidates, *how)


@pytest.mark.parametrize("unit", [1, 4])
def test_scores_that_mislead_by_a_factor_or_a_power_are_seen_through(unit: int) -> None:
    """Moved, squeezed, stretched and blurred: on the mean over rows it is what was asked."""
    given = inputs(rows=60, units=900, unit=unit, sharp=2.0)
    true = true_scores(given)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(1))
    for asked in (0.7, 0.9, 0.97):
        coverage = torch.full((60,), asked)
        for scores in (true, true - 3, true + 2, 0.5 * true, 1.5 * true, true + noise):
            shares = sampled_ranking(CPU, scores.clone(), given, coverage)
            taken = shares.scores >= shares.lowest[..., None]
            read = 1 - true.exp().sum(-1) + (true.exp() * taken).sum(-1)
            assert abs(read.mean().item() - asked) < 0.025, asked


def test_the_moved_scores_add_up_to_the_true_share_of_the_candidates():
    given = inputs(rows=40, units=900, unit=1, sharp=2.0)
    true = true_scores(given)
    found = sampled_ranking(CPU, true - 2, given, torch.ones(40)).scores.exp().sum(-1)
    whole = true.exp().sum(-1)
    assert ((found - whole).abs() < 0.1).all() and (found - whole).mean().abs() < 0.005


def test_a_coverage_of_one_reads_down_to_the_ceiling_and_a_covered_row_reads_nothing():
    given = inputs(rows=3, units=90, unit=1, sharp=0.1)
    shares = sampled_ranking(REFERENCE, true_scores(given), given, torch.tensor([1.0, 0.9, 1e-3]))
    assert (shares.lowest[0] == -torch.inf).all()
    assert shares.lowest[1].isfinite().all()
    assert (shares.lowest[2] == torch.inf).all()


def test_a_row_without_candidates_and_one_whose_scores_say_nothing_are_left_alone():
    given = inputs(rows=3, units=90, unit=1, sharp=1.0)
    none = given.candidates.begin.clone()
    none[0] = 89
    given = replace(given, candidates=replace(given.candidates, begin=none))
    scores = true_scores(given)
    scores[1, 0] = torch.nan
    shares = sampled_ranking(REFERENCE, scores, given, torch.full((3,), 0.9))
    assert (shares.scores[0] == -torch.inf).all() and not shares.lowest.isnan().any()
    assert shares.scores[2].isfinite().sum() == scores[2].isfinite().sum()
    alone = replace(
        given, q=given.q[2:], known=given.known[2:],
        candidates=Candidates(*(part[2:] for part in vars(given.candidates).values())),
    )  # fmt: skip
    again = sampled_ranking(REFERENCE, scores[2:], alone, torch.tensor([0.9]))
    assert torch.equal(again.scores[0], shares.scores[2]), "the same in any company"
    assert torch.equal(again.lowest[0], shares.lowest[2])


@pytest.mark.parametrize("width", [1, 63, 64, 65, 1000])
def test_units_are_drawn_at_equal_steps(width: int):
    """Against a plain walk over whole numbers, whose sums are exact."""
    draw = torch.Generator().manual_seed(width)
    odds = torch.randint(0, 5, (2, 2, width), generator=draw).float()
    odds[..., width // 2] = 1.0
    units, whole = systematic(odds, 7)
    for row in range(2):
        for head in range(2):
            line = [u for u in range(width) for _ in range(int(odds[row, head, u]))]
            points = [int(len(line) * (i + 0.5) / 7) for i in range(7)]
            assert units[row, head].tolist() == [line[point] for point in points]
            assert whole[row, head].item() == len(line)


def test_between_two_units_of_the_sample_the_threshold_lies_on_a_line():
    drawn, weights = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.2, 0.4]]])
    ends = torch.tensor([[[4.0, 0.0]]])  # below 4: .6, below 3: .4, below 1: .1, below 0: none

    def at(unread: float) -> float:
        return threshold(drawn, weights, ends, torch.tensor([[unread]])).item()

    assert [round(at(u), 3) for u in (0.5, 0.4, 0.25, 0.1, 0.05)] == [3.5, 3.0, 2.0, 1.0, 0.5]
    assert at(0.6) == torch.inf and at(0.7) == torch.inf and at(0.0) == -torch.inf


def test_a_sample_has_units_and_tokens_enough():
    assert [sample_size(unit) for unit in (1, 8, 16, 64)] == [128, 16, 16, 16]
