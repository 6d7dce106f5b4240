"""Selection: ties, numbers that are none, long rows, and what stands beside the scores.

By the kernel in Triton, by the three of long rows of tokens, and by that in CUDA C++ with its warps
in several orders.
"""

from collections.abc import Iterator

import pytest
import torch
from cases import make_batch
from triton_kit import REDUCTIONS, REFERENCE, SUMMARIES, HostOps, select_by

from sgl_sparsekv.types import Candidates, Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
UNITS = [1, 3, 16, 40, 260, 2048, 4500]
"""Of the rows: below, at and above the 2048 scores that the kernel walks at a time."""


@pytest.fixture(scope="module")
def ops() -> HostOps:
    """The Triton ops, on tensors of the host."""
    return HostOps()


@pytest.fixture(
    params=[("triton", 0), ("narrow", 0), ("cuda", 0), ("cuda", 1), ("cuda", 5)], ids=str
)
def chooser(request: pytest.FixtureRequest, ops: HostOps) -> Iterator[HostOps]:
    """The same, with one kernel or the other, or with the three of longer rows."""
    with select_by(*request.param):
        yield ops


def candidates_of(units: list[int], seed: int = 0) -> tuple[torch.Tensor, Candidates]:
    """Rows with 2 sink units and a window of 3."""
    rng = torch.Generator().manual_seed(seed)
    num_units = torch.tensor(units, dtype=torch.int32)
    table = torch.randint(0, 10**6, (len(units), max(units)), generator=rng, dtype=torch.int32)
    begin = num_units.clamp(max=2)
    return num_units, Candidates(table, begin, torch.maximum(begin, num_units - 3))


def same_selection(
    ops: HostOps, scores: torch.Tensor, candidates: Candidates, units: torch.Tensor, counts: list
) -> None:
    """The reference and the kernel choose the same, in the same order, from candidates alone."""
    unit, begin, end = torch.arange(scores.shape[2]), candidates.begin, candidates.end
    inside = (unit >= begin[:, None]) & (unit < end[:, None])
    scores = scores.where(inside[:, None], torch.nan)
    kept = torch.tensor(counts, dtype=torch.int32)
    got = ops.select(scores, candidates, units, kept)
    want = REFERENCE.select(scores, candidates, units, kept)
    assert torch.equal(got.logical, want.logical)
    assert torch.equal(got.physical, want.physical)
    assert torch.equal(got.counts, want.counts)


@pytest.mark.parametrize("levels", [2, 10**6])
def test_ties_go_to_the_lower_unit(chooser: HostOps, levels: int) -> None:
    rng = torch.Generator().manual_seed(levels)
    num_units, candidates = candidates_of(UNITS, levels)
    shape = (len(UNITS), 3, max(UNITS))
    scores = torch.randint(-levels, levels, shape, generator=rng) / levels
    scores[torch.rand(scores.shape, generator=rng) < 0.2] = -torch.inf
    scores[:, 1][scores[:, 1] == 0] = -0.0
    for counts in (UNITS, [1, 3, 9, 20, 128, 700, 2500], [1, 2, 5, 6, 6, 6, 6]):
        same_selection(chooser, scores, candidates, num_units, counts)


def test_what_is_not_a_number_ranks_behind_what_is_always_kept(chooser: HostOps) -> None:
    """NaN, both infinities, the largest floats, denormals, and both zeros as equals."""
    rng = torch.Generator().manual_seed(5)
    largest, smallest = torch.finfo(torch.float32).max, 2.0**-149
    special = [torch.nan, torch.inf, -torch.inf, largest, -largest, smallest, -smallest, 0.0, -0.0]
    values = torch.tensor([*special, 1.0, -1.0])
    num_units, candidates = candidates_of([40, 300, 17])
    scores = values[torch.randint(0, len(values), (3, 4, 300), generator=rng)]
    scores[0, 0] = torch.nan
    scores[1, 0] = -torch.inf
    scores[1, 1] = -0.0
    scores[1, 1, ::3] = 0.0
    for counts in ([40, 300, 17], [6, 6, 6], [12, 90, 9], [30, 200, 15], [5, 5, 5]):
        same_selection(chooser, scores, candidates, num_units, counts)


def test_fewer_units_than_are_always_kept(chooser: HostOps) -> None:
    """No server asks for it; the lowest are taken, as the reference does."""
    num_units, candidates = candidates_of([16, 40])
    same_selection(chooser, torch.rand(2, 2, 40), candidates, num_units, [1, 4])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("exact", [False, True])
def test_a_broken_key_selects_as_the_reference_does(
    ops: HostOps, exact: bool, reduction: Reduction, value: float
) -> None:
    """The ranks that follow from an overflowed or invalid key are those of the reference."""
    batch = make_batch([1400, 1400], heads=2, group=4, dim=64)
    batch.q[:, :, 0, 3], batch.q[:, :, 1, 3] = 2.0, -2.0
    slots = batch.slots(0)
    batch.keys[slots[16 * 30 + 5], 0, 3] = value  # one key of one head
    batch.keys[slots[16 * 33 : 16 * 65], 1, 3] = value  # all units of a block of scores
    if exact:
        args = (batch.q, batch.keys, batch.candidates, 0.1, reduction, 16)
        got, want = ops.score_exact(*args), REFERENCE.score_exact(*args)
    else:
        fields = torch.full((batch.keys.shape[0] // 16, 2, 2, 64), torch.nan)
        summary = SUMMARIES["min_max"]
        for row in range(2):
            units = batch.table[row, : batch.lengths[row] // 16].long()
            REFERENCE.summarise(summary, batch.keys, fields, units)
        args = (summary, batch.q, fields, batch.candidates, 0.1, reduction)
        got, want = ops.score(*args), REFERENCE.score(*args)
    ranks = [scores.nan_to_num(3e38, posinf=3e38, neginf=-3e38) for scores in (got, want)]
    assert (ranks[0] - ranks[1]).abs().max() <= 1e-4
    args = (batch.candidates, batch.num_units, torch.full((2,), 20, dtype=torch.int32))
    chosen = REFERENCE.select(want, *args).logical
    for who in ("triton", "narrow", "cuda"):
        with select_by(who):
            assert torch.equal(ops.select(got, *args).logical, chosen)


@pytest.mark.parametrize("who", ["triton", "narrow"])
@pytest.mark.parametrize("kind", ["shares", "few values", "all equal"])
def test_tokens_of_a_long_context(ops: HostOps, kind: str, who: str) -> None:
    """131,072 candidates, and a shorter row beside them: within a chunk, and within registers."""
    units, rng = [131_072, 40_000], torch.Generator().manual_seed(len(kind))
    num_units, candidates = candidates_of(units)
    scores = (3 * torch.randn(2, 1, units[0], generator=rng)).log_softmax(-1)
    if kind != "shares":
        scores = (scores * (kind == "few values")).round()
    with select_by(who):
        for counts in ([512, 6], [30, 2500]):
            same_selection(ops, scores, candidates, num_units, counts)
