"""Tokens scored by their codes: what the reference gives, and the same bits in any company."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from coded import make_coded, row_of
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.types import Candidates, Reduction

REFERENCE = load_reference()
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [  # lengths, H, G, D, segment, sub-vectors, codes
    ([300, 65, 7], 2, 4, 128, 64, 1, 32),
    ([257, 256], 2, 1, 80, 128, 2, 64),
    ([100, 99], 1, 5, 64, 32, 4, 17),
    ([160], 1, 7, 96, 32, 8, 5),
    ([260, 33], 2, 8, 64, 128, 1, 256),
    ([200], 1, 3, 256, 64, 2, 100),
    ([140], 2, 2, 37, 64, 1, 16),
]


@pytest.fixture
def threads() -> Iterator[int]:
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def allowed(q: torch.Tensor, index: SegmentIndex, scale: float) -> float:
    """Rounding of sums over D products, of float32 logits as large as the largest can be."""
    norms = q.float().norm(dim=-1).max() * index.codebooks.float().square().sum(-1).max().sqrt()
    return 2.0**-21 * max(16.0, (norms * index.codebooks.shape[2] ** 0.5 * scale).item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_codes(ops: CpuOps, shape: tuple, dtype: torch.dtype):
    batch, index = make_coded(*shape[:4], dtype, *shape[4:])
    for scale in (batch.q.shape[-1] ** -0.5, 3.0):
        for reduction in Reduction:
            known = None if reduction is Reduction.MAX else torch.randn(batch.q.shape[:3]) * 9
            for joined in (None, known):
                args = (batch.candidates, scale, reduction, joined)
                got = ops.score_codes(batch.q, batch.keys, index, *args)
                want = REFERENCE.score_codes(batch.q, batch.keys, index, *args)
                inside = want > -torch.inf
                assert torch.equal(inside, got > -torch.inf) and not want.isnan().any()
                if inside.any():
                    assert (got - want)[inside].abs().max() <= allowed(batch.q, index, scale)


def test_candidates_may_begin_and_end_anywhere(ops: CpuOps):
    batch, index = make_coded([400] * 6, 2, 4, 64, torch.float32, 64, 2, 16)
    spans = [(0, 1), (63, 65), (64, 128), (5, 5), (399, 400), (130, 330)]
    begin, end = torch.tensor(spans, dtype=torch.int32).unbind(1)
    candidates = Candidates(batch.table, begin.contiguous(), end.contiguous())
    got, want = (
        o.score_codes(batch.q, batch.keys, index, candidates, 0.1, Reduction.MAX_SOFTMAX)
        for o in (ops, REFERENCE)
    )
    assert torch.equal(got == -torch.inf, want == -torch.inf)
    assert (got - want).nan_to_num(0).abs().max() <= allowed(batch.q, index, 0.1)


@pytest.mark.parametrize("parts,codes", [(1, 8), (2, 8), (2, 200), (4, 64)])
def test_codes_that_no_token_has_do_not_swallow_the_mass(ops: CpuOps, parts: int, codes: int):
    batch, index = make_coded([200], 2, 4, 64, torch.float32, 64, parts, codes)
    index.codes.clamp_(min=1)
    direction = batch.q[0, :, :, : 64 // parts].mean(1)[:, None]
    index.codebooks[:, :, :, 0] = 40 * direction  # of logits e^100 times the others'
    args = (batch.candidates, 1.0, Reduction.MAX_SOFTMAX)
    got = ops.score_codes(batch.q, batch.keys, index, *args)
    want = REFERENCE.score_codes(batch.q, batch.keys, index, *args)
    inside = want > -torch.inf
    assert torch.equal(inside, got > -torch.inf)
    assert (got - want)[inside].abs().max() <= allowed(batch.q, index, 1.0)


def test_tokens_of_one_code_have_one_score(ops: CpuOps):
    batch, index = make_coded([128], 1, 4, 128, torch.bfloat16, 64, 1, 8)
    index = replace(index, table=torch.tensor([[0, 1]], dtype=torch.int32))
    zero = torch.zeros(1, dtype=torch.int32)
    candidates = Candidates(batch.table, zero, zero + 128)
    for reduction in Reduction:
        scores = ops.score_codes(batch.q, batch.keys, index, candidates, 0.1, reduction)[0, 0]
        for segment in range(2):
            for code in range(8):
                same = scores[64 * segment :][:64][index.codes[segment, 0, 0] == code]
                assert (same == same[:1]).all()


def test_what_is_not_a_number_does_no_harm(ops: CpuOps):
    batch, index = make_coded([300, 65], 2, 4, 64, torch.float32, 64, 2, 16)
    index.codebooks[:, 0, 0, 3, 5], index.codebooks[:, 1, 1, 2, 5] = torch.nan, torch.inf
    batch.keys[batch.slots(0)[-100:], 1, 3] = -torch.inf
    for reduction in Reduction:
        scores = ops.score_codes(batch.q, batch.keys, index, batch.candidates, 0.1, reduction)
        unit = torch.arange(scores.shape[-1])
        begin, end = batch.candidates.begin[:, None, None], batch.candidates.end[:, None, None]
        outside = ((unit < begin) | (unit >= end)).expand(scores.shape)
        assert (scores[outside] == -torch.inf).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_batch_threads_or_places(ops: CpuOps, shape: tuple, threads: int):
    batch, index = make_coded(*shape[:4], torch.bfloat16, *shape[4:])
    for reduction in Reduction:
        args = (batch.candidates, 0.1, reduction)
        together = ops.score_codes(batch.q, batch.keys, index, *args)
        torch.set_num_threads(3)
        assert torch.equal(together, ops.score_codes(batch.q, batch.keys, index, *args))
        torch.set_num_threads(threads)
        for row, length in enumerate(batch.lengths):
            one, its = row_of(batch, index, row)
            alone = ops.score_codes(one.q, one.keys, its, one.candidates, 0.1, reduction)
            assert torch.equal(together[row, :, :length], alone[0])
    slots = torch.randperm(len(batch.keys))
    moved = batch.keys[slots.argsort()]
    table = torch.where(batch.table >= 0, slots.int()[batch.table.clamp(min=0).long()], -1)
    candidates = Candidates(table, batch.candidates.begin, batch.candidates.end)
    assert torch.equal(together, ops.score_codes(batch.q, moved, index, candidates, *args[1:]))
