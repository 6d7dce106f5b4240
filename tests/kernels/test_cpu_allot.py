"""How much each KV head reads: down to its lowest score, and out of a pool."""

import pytest
import torch
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.types import Candidates

REFERENCE = load_reference()
CASES = 60


class Case:
    """Rows of random length whose scores are logs of shares, with ties if `tied`."""

    def __init__(self, seed: int, tied: bool) -> None:
        draw = torch.Generator().manual_seed(seed)

        def number(low: int, high: int) -> torch.Tensor:
            return torch.randint(low, high + 1, (self.rows,), generator=draw, dtype=torch.int32)

        self.rows, self.heads = 1 + seed % 3, 1 + seed % 4
        width = int(torch.randint(8, 700, (), generator=draw))
        self.begin = number(0, 3)
        self.end = self.begin + number(0, width - 6)
        self.total = self.end + number(1, 3)
        always = self.total - (self.end - self.begin)
        self.counts = always + (number(0, 1000) * (self.end - self.begin) // 1000).int()
        shape = (self.rows, self.heads, width)
        logits = torch.randn(shape, generator=draw) * torch.rand((), generator=draw) * 4
        logits = (logits * 2).round() if tied else logits
        unit = torch.arange(width)
        inside = (unit >= self.begin[:, None]) & (unit < self.end[:, None])
        self.inside = inside[:, None].expand(shape)
        logits = logits.masked_fill(~self.inside, -torch.inf)
        kept = torch.rand(shape[:2], generator=draw)[..., None] * 0.8
        self.scores = (logits - logits.logsumexp(-1, keepdim=True) + (1 - kept).log()).nan_to_num(
            -torch.inf, neginf=-torch.inf
        )
        table = unit.int().expand(self.rows, -1).contiguous()
        self.candidates = Candidates(table, self.begin, self.end)

    def allot(self, ops: object, deep: float, pooled: bool) -> torch.Tensor:
        """Units of each KV head, which reads that part of its range of scores; 1: all of it."""
        finite = self.scores.isfinite()
        top = self.scores.masked_fill(~finite, -torch.inf).amax(-1)
        low = self.scores.masked_fill(~finite, torch.inf).amin(-1)
        lowest = top + deep * (low - top) if deep < 1 else torch.full_like(top, -torch.inf)
        every = torch.full((self.rows,), int(pooled), dtype=torch.int32)
        return ops.allot(self.scores, self.candidates, self.total, self.counts, lowest, every)

    @property
    def always(self) -> torch.Tensor:
        """Units of sinks, window and tail."""
        return self.total - (self.end - self.begin)


@pytest.mark.parametrize("tied", [False, True])
def test_the_pool_is_shared_as_the_reference_shares_it_and_spent_exactly(ops: CpuOps, tied: bool):
    for seed in range(CASES):
        case = Case(seed, tied)
        got = case.allot(ops, 1.0, pooled=True)
        assert torch.equal(got, case.allot(REFERENCE, 1.0, pooled=True)), seed
        assert torch.equal(got.sum(-1).int(), case.counts * case.heads)
        least = case.always + ((case.counts - case.always) * 0.25).int()
        assert (got >= least[:, None]).all() and (got <= case.total[:, None]).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_head_reads_what_reaches_its_lowest_score(ops: CpuOps, tied: bool, pooled: bool):
    for seed in range(CASES):
        case, deep = Case(seed, tied), seed / CASES
        got = case.allot(ops, deep, pooled)
        assert torch.equal(got, case.allot(REFERENCE, deep, pooled)), seed
        whole = case.allot(REFERENCE, 1.0, pooled)
        assert (got <= whole).all() and (got >= case.always[:, None]).all()


def test_a_score_that_is_the_lowest_is_read_and_one_that_is_no_number_is_not():
    scores = torch.tensor([[[-torch.inf, 3.0, 1.0, torch.nan, 2.0, 0.0, -torch.inf]]])
    row = Candidates(torch.arange(7)[None].int(), torch.tensor([1]).int(), torch.tensor([6]).int())
    total, none = torch.tensor([7]).int(), torch.zeros(1, dtype=torch.int32)

    def read(lowest: float) -> int:
        asked = torch.tensor([[lowest]])
        return int(REFERENCE.allot(scores, row, total, total, asked, none)) - 2

    assert [read(lowest) for lowest in (3.5, 3.0, 2.0, -torch.inf, torch.inf)] == [0, 1, 2, 4, 0]


def test_counts_of_kv_heads_that_share_no_number_are_read_as_listed(ops: CpuOps):
    case = Case(7, tied=False)
    counts = case.allot(ops, 1.0, pooled=True)
    got = ops.select(case.scores, case.candidates, case.total, counts)
    want = REFERENCE.select(case.scores, case.candidates, case.total, counts)
    assert torch.equal(got.logical, want.logical) and torch.equal(got.counts, counts)
    assert len(counts.unique()) > 1
    slots = case.scores.shape[-1] * 4
    keys, values = torch.randn(slots, case.heads, 32), torch.randn(slots, case.heads, 32)
    q = torch.randn(case.rows, case.heads, 2, 32)
    tails = torch.full((case.rows,), 3, dtype=torch.int32)
    for got_one, want_one in zip(
        *(o.attend(q, keys, values, got.physical, counts, tails, 0.2, 4) for o in (ops, REFERENCE)),
        strict=True,
    ):
        torch.testing.assert_close(got_one, want_one)
