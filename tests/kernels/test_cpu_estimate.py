"""Residual codes: their scores, and the estimate of what is not read, beside the reference's."""

from dataclasses import replace

import pytest
import torch
from cases import Batch, make_batch
from coded import bunches
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.types import Candidates, Reduction, ResidualIndex, Selection

REFERENCE = load_reference()
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [  # lengths, H, G, D, segment, sub-vectors
    ([300, 65, 7], 2, 4, 64, 64, 4),
    ([257, 256], 2, 1, 80, 128, 2),
    ([200, 99], 1, 5, 128, 64, 8),
    ([520], 1, 7, 64, 512, 4),
    ([160], 1, 3, 96, 32, 1),
]
OUT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-18}


def make_residual(
    ops: CpuOps,
    lengths: list[int],
    heads: int,
    group: int,
    dim: int,
    dtype: torch.dtype,
    segment: int,
    subspaces: int,
) -> tuple[Batch, ResidualIndex]:
    """Rows whose whole segments have records of their own keys, but every third has none."""
    batch = make_batch(lengths, heads, group, dim, dtype, unit_size=1)
    batch.keys.copy_(bunches(len(batch.keys), heads, dim, dtype))
    spans = [
        batch.slots(row)[nth * segment : (nth + 1) * segment]
        for row, length in enumerate(lengths)
        for nth in range(length // segment)
    ]
    counts = [length // segment for length in lengths]
    table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = torch.arange(count) + sum(counts[:row])
        table[row, 2:count:3] = -1
    slots = torch.stack(spans).long()
    summary, skips = residuals(segment, subspaces), torch.zeros(len(slots), dtype=torch.int64)
    arrays = summary.build(ops.index_segments, batch.keys[slots], batch.values[slots], skips)
    shapes = summary.shapes(dim, batch.values.shape[-1])
    assert {n: (tuple(a.shape[2:]), a.dtype) for n, a in arrays.items()} == shapes
    index = ResidualIndex(**{n: a.contiguous() for n, a in arrays.items()}, table=table)
    return batch, index


def selected(ops: CpuOps, batch: Batch, index: ResidualIndex, share: float) -> Selection:
    """What a row reads that keeps so much of its tokens."""
    scores = REFERENCE.score_codes(
        batch.q, batch.keys, index, batch.candidates, 0.2, Reduction.MAX_SOFTMAX
    )
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)
    begin, end = batch.candidates.begin, batch.candidates.end
    always = begin + lengths - end
    counts = torch.maximum(always, (lengths * share).int()).clamp(max=lengths)
    return ops.select(scores, batch.candidates, lengths, counts.int())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_residual_codes(ops: CpuOps, shape: tuple, dtype: torch.dtype) -> None:
    batch, index = make_residual(ops, *shape[:4], dtype, *shape[4:])
    for scale in (batch.q.shape[-1] ** -0.5, 3.0):
        for reduction in Reduction:
            known = None if reduction is Reduction.MAX else torch.randn(batch.q.shape[:3]) * 9
            for joined in (None, known):
                args = (batch.q, batch.keys, index, batch.candidates, scale, reduction, joined)
                got, want = ops.score_codes(*args), REFERENCE.score_codes(*args)
                inside = want > -torch.inf
                assert torch.equal(inside, got > -torch.inf) and not want.isnan().any()
                largest = want[inside].abs().max() if inside.any() else torch.tensor(0.0)
                assert (got - want)[inside].abs().amax() <= 2.0**-18 * max(64.0, float(largest))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_within_reach(ops: CpuOps, shape: tuple, dtype: torch.dtype) -> None:
    batch, index = make_residual(ops, *shape[:4], dtype, *shape[4:])
    known = torch.randn(batch.q.shape[:3])
    for share in (0.05, 0.3, 0.9):
        reach = (torch.tensor(batch.lengths) * share).int()
        for reduction in Reduction:
            for also in (None,) if reduction is Reduction.MAX else (None, known):
                args = (batch.q, batch.keys, index, batch.candidates, 0.3, reduction, also, reach)
                got, want = ops.score_codes(*args), REFERENCE.score_codes(*args)
                inside = want > -torch.inf
                assert torch.equal(inside, got > -torch.inf) and not want.isnan().any()
                assert not inside.any() or (got - want)[inside].abs().amax() <= 2.0**-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rest_is_estimated_as_by_the_reference(
    ops: CpuOps, shape: tuple, dtype: torch.dtype
) -> None:
    batch, index = make_residual(ops, *shape[:4], dtype, *shape[4:])
    for share in (0.0, 0.5, 1.0):
        selection = selected(ops, batch, index, share)
        for scale in (batch.q.shape[-1] ** -0.5, 8.0):
            args = (batch.q, index, batch.candidates, selection, scale, 1)
            (out, lse), (want, want_lse) = ops.estimate(*args), REFERENCE.estimate(*args)
            assert torch.equal(lse == -torch.inf, want_lse == -torch.inf)
            there = lse > -torch.inf
            # Logits are rounded by their size, and a weight is off by as much.
            size = want_lse[there].abs().amax() if there.any() else torch.tensor(0.0)
            close = 2.0**-18 * size.clamp(min=64)
            assert ((lse - want_lse)[there].abs() <= close).all()
            largest = batch.values.float().nan_to_num(0).abs().max()
            allowed = OUT[dtype] * (1 + largest) + close * largest
            assert ((out.float() - want.float()).abs() <= allowed).all()
            assert (out[~there] == 0).all()


def test_what_lies_far_below_a_segments_best_is_weighed_as_exactly(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [256], 1, 4, 64, torch.float32, 64, 4)
    selection = selected(ops, batch, index, 0.6)
    for scale in (40.0, 400.0):  # logits hundreds apart: products of exponentials vanish
        args = (batch.q, index, batch.candidates, selection, scale, 1)
        (out, lse), (want, want_lse) = ops.estimate(*args), REFERENCE.estimate(*args)
        assert torch.allclose(lse, want_lse, rtol=1e-5) and torch.allclose(out, want, atol=2e-2)


def test_units_of_a_page_method_leave_their_tokens_out(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [256], 2, 4, 64, torch.float32, 64, 4)
    begin, end = (torch.tensor([x], dtype=torch.int32) for x in (16, 192))
    spans = Candidates(batch.table, begin, end)
    logical = torch.tensor([[[0, 3, 5, 12, 13, 14, 15]] * 2], dtype=torch.int32)
    units = Selection(logical, logical, torch.tensor([[7, 7]], dtype=torch.int32))
    tokens = (logical[..., None] * 16 + torch.arange(16)).flatten(2).int().contiguous()
    single = Selection(tokens, tokens, torch.tensor([[7 * 16] * 2], dtype=torch.int32))
    by_unit = ops.estimate(batch.q, index, spans, units, 0.2, 16)
    by_token = ops.estimate(batch.q, index, spans, single, 0.2, 1)
    assert all(torch.equal(a, b) for a, b in zip(by_unit, by_token, strict=True))


def test_kv_heads_that_read_unlike_numbers_leave_out_their_own(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [300, 257], 2, 4, 64, torch.float32, 64, 4)
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)
    shape = (batch.q, batch.keys, index, batch.candidates, 0.2, Reduction.MAX_SOFTMAX)
    counts = torch.tensor([[60, 190], [230, 90]], dtype=torch.int32)
    listed = ops.select(REFERENCE.score_codes(*shape), batch.candidates, lengths, counts)
    assert torch.equal(listed.counts, counts)
    args = (batch.q, index, batch.candidates, listed, 0.2, 1)
    for got, want in zip(ops.estimate(*args), REFERENCE.estimate(*args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for head in range(2):  # as where every KV head reads as much as this one
        alike = counts[:, head].contiguous()
        scores = REFERENCE.score_codes(*shape)
        same = ops.select(scores, batch.candidates, lengths, alike)
        assert torch.equal(
            ops.estimate(batch.q, index, batch.candidates, same, 0.2, 1)[1][:, head],
            ops.estimate(*args)[1][:, head],
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rows_estimate_does_not_depend_on_its_company(ops: CpuOps, shape: tuple) -> None:
    batch, index = make_residual(ops, *shape[:4], torch.bfloat16, *shape[4:])
    selection = selected(ops, batch, index, 0.3)
    threads = torch.get_num_threads()
    together = ops.estimate(batch.q, index, batch.candidates, selection, 0.2, 1)
    try:
        torch.set_num_threads(3)
        again = ops.estimate(batch.q, index, batch.candidates, selection, 0.2, 1)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    for row, length in enumerate(batch.lengths):
        one = batch.alone(row)
        its = replace(index, table=index.table[row : row + 1, : length // index.segment_size])
        own = Selection(
            selection.logical[row : row + 1].contiguous(),
            selection.physical[row : row + 1],
            selection.counts[row : row + 1],
        )
        alone = ops.estimate(one.q, its, one.candidates, own, 0.2, 1)
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together, alone, strict=True))
