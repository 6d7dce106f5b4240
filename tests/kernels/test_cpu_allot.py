"""How much each KV head reads: until a share of attention is covered, and out of a pool."""

import pytest
import torch
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.types import Candidates, Goal

REFERENCE = load_reference()
CASES = 60
SPARE = 1e-4
"""Share by which two float32 sums of shares may differ, and more."""


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

    def allot(self, ops: object, coverage: float, pooled: bool, flat: float = 0.8) -> torch.Tensor:
        """Units of each KV head."""
        asked = torch.full((self.rows,), coverage)
        goal = Goal(asked, torch.full((self.rows,), int(pooled), dtype=torch.int32), flat)
        return ops.allot(self.scores, self.candidates, self.total, self.counts, goal)

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
def test_a_head_reads_the_fewest_units_that_cover_what_was_asked(ops: CpuOps, tied: bool):
    for seed in range(CASES):
        case, asked = Case(seed, tied), 0.5 + 0.499 * (seed / CASES)
        got = case.allot(ops, asked, pooled=False)
        fewest = case.allot(REFERENCE, asked - SPARE, pooled=False)
        most = case.allot(REFERENCE, asked + SPARE, pooled=False)
        assert ((got >= fewest) & (got <= most)).all(), seed
        assert (got <= case.counts[:, None]).all() and (got >= case.always[:, None]).all()


def test_flat_shares_keep_their_sum_and_need_more_units():
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]).log()
    row = Candidates(torch.arange(7)[None].int(), torch.tensor([1]).int(), torch.tensor([6]).int())
    whole = torch.nn.functional.pad(scores, (1, 1), value=-torch.inf)[None]
    total, none = torch.tensor([7]).int(), torch.zeros(1, dtype=torch.int32)

    def read(asked: float, flat: float) -> int:
        goal = Goal(torch.tensor([asked]), none, flat)
        return int(REFERENCE.allot(whole, row, total, total, goal)) - 2

    assert [read(asked, 1.0) for asked in (0.5, 0.51, 0.75, 0.99)] == [1, 2, 2, 5]
    assert [read(asked, 0.01) for asked in (0.19, 0.5, 0.99)] == [1, 3, 5]


def test_counts_of_kv_heads_that_share_no_number_are_read_as_listed(ops: CpuOps):
    case = Case(7, tied=False)
    counts = case.allot(ops, 0.8, pooled=True)
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
