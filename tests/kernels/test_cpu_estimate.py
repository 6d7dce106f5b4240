"""Residual codes: their scores, and the estimate of what is not read, beside the reference's."""

from dataclasses import replace

import pytest
import torch
from cases import Batch, make_batch
from coded import bunches
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.segment_records import ResidualIndex
from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.types import Candidates, Reduction, Rest, ScoreInputs, Selection

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


def reach_of(batch: Batch, share: float) -> torch.Tensor:
    """So much of the rows' tokens."""
    return (torch.tensor(batch.lengths) * share).int()


def weighed(ops: object, batch: Batch, index: ResidualIndex, selection: Selection) -> torch.Tensor:
    """Weights of what is not read, a third of the tokens being within reach."""
    how = (0.2, Reduction.MAX_SOFTMAX, reach_of(batch, 0.33), 1)
    return ops.weigh(batch.q, index, batch.candidates, selection, *how)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rest_weighs_as_by_the_reference(ops: CpuOps, shape: tuple, dtype: torch.dtype) -> None:
    batch, index = make_residual(ops, *shape[:4], dtype, *shape[4:])
    for share, reduction in zip((0.0, 0.2, 0.5, 1.0), (*Reduction, Reduction.MAX), strict=True):
        selection = selected(ops, batch, index, share)
        for scale in (batch.q.shape[-1] ** -0.5, 8.0):
            how = (scale, reduction, reach_of(batch, 0.4), 1)
            args = (batch.q, index, batch.candidates, selection, *how)
            got, want = ops.weigh(*args), REFERENCE.weigh(*args)
            there = want > -torch.inf
            assert torch.equal(there, got > -torch.inf) and not want.isnan().any()
            # Logits are rounded by their size, and a weight is off by as much.
            size = want[there].abs().amax() if there.any() else torch.tensor(0.0)
            assert ((got - want)[there].abs() <= 2.0**-17 * size.clamp(min=64)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_choosing_at_once_is_to_score_select_and_weigh(
    ops: CpuOps, shape: tuple, dtype: torch.dtype
) -> None:
    batch, index = make_residual(ops, *shape[:4], dtype, *shape[4:])
    lengths, spans = torch.tensor(batch.lengths, dtype=torch.int32), batch.candidates
    always = spans.begin + lengths - spans.end
    for reduction in Reduction:
        for share, reach in ((0.0, 2), (0.1, 3), (0.3, 1), (0.4, 0), (1.0, 1)):
            counts = torch.maximum(always, reach_of(batch, share)).clamp(max=lengths)
            inputs = ScoreInputs(
                *(batch.q, batch.keys, {}, index, spans, lengths, counts, 0.3, reduction, 1)
            )
            within = counts * reach
            chosen, weights = ops.choose(inputs, reach)
            how = (0.3, reduction)
            scores = ops.score_codes(batch.q, batch.keys, index, spans, *how, None, within)
            wanted = ops.select(scores, spans, lengths, counts)
            assert torch.equal(chosen.logical, wanted.logical)
            assert torch.equal(chosen.physical, wanted.physical)
            assert torch.equal(chosen.counts, wanted.counts)
            rest = ops.weigh(batch.q, index, spans, wanted, *how, within, 1)
            assert torch.equal(weights, rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rest_joins_what_was_read_as_by_the_reference(
    ops: CpuOps, shape: tuple, dtype: torch.dtype
) -> None:
    batch, index = make_residual(ops, *shape[:4], dtype, *shape[4:])
    largest = batch.values.float().nan_to_num(0).abs().max()
    read = torch.randn(*batch.q.shape[:3], batch.values.shape[-1]).to(dtype)
    for share in (0.0, 0.5, 1.0):
        weights = weighed(ops, batch, index, selected(ops, batch, index, share))
        for shift in (-torch.inf, 0.0, 30.0):
            state = (read, weights.logsumexp(-1).nan_to_num(0.0, neginf=1.0) + shift)
            (out, lse), (want, want_lse) = (
                one.estimate(weights, index, *state) for one in (ops, REFERENCE)
            )
            there = want_lse > -torch.inf
            assert torch.equal(lse > -torch.inf, there) and (out[~there] == 0).all()
            assert ((lse - want_lse)[there].abs() <= 2.0**-16).all()
            allowed = OUT[dtype] * (8 + largest)
            assert ((out.float() - want.float()).abs() <= allowed).all()


def test_where_all_was_read_nothing_joins(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [300, 65], 2, 4, 64, torch.bfloat16, 64, 4)
    weights = weighed(ops, batch, index, selected(ops, batch, index, 1.0))
    assert (weights == -torch.inf).all()
    state = (torch.randn_like(batch.q), torch.randn(batch.q.shape[:3]))
    assert torch.equal(ops.estimate(weights, index, *state)[0], state[0])


def test_rows_shorter_than_a_segment_read_as_without_an_estimate(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [64, 33], 2, 4, 64, torch.bfloat16, 64, 4)
    index = replace(index, table=index.table[:, :0])
    lengths, counts = (torch.tensor(x, dtype=torch.int32) for x in ([64, 33], [20, 12]))
    inputs = ScoreInputs(
        *(batch.q, batch.keys, {}, index, batch.candidates, lengths, counts),
        *(0.2, Reduction.MAX_SOFTMAX, 1),
    )
    for one in (ops, REFERENCE):
        chosen, weights = one.choose(inputs, 3)
        assert weights.shape[-1] == 0
        assert torch.equal(chosen.logical, ops.choose(inputs, 3)[0].logical)
        state = (torch.randn_like(batch.q), torch.randn(batch.q.shape[:3]))
        joined = one.estimate(weights, index, *state)
        assert torch.equal(joined[0], state[0])
        torch.testing.assert_close(joined[1], state[1])


def test_units_of_a_page_method_leave_their_tokens_out(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [256], 2, 4, 64, torch.float32, 64, 4)
    begin, end = (torch.tensor([x], dtype=torch.int32) for x in (16, 192))
    spans = Candidates(batch.table, begin, end)
    logical = torch.tensor([[[0, 3, 5, 12, 13, 14, 15]] * 2], dtype=torch.int32)
    units = Selection(logical, logical, torch.tensor([[7, 7]], dtype=torch.int32))
    tokens = (logical[..., None] * 16 + torch.arange(16)).flatten(2).int().contiguous()
    single = Selection(tokens, tokens, torch.tensor([[7 * 16] * 2], dtype=torch.int32))
    how = (0.2, Reduction.MAX_SOFTMAX, reach_of(batch, 0.3))
    by_unit = ops.weigh(batch.q, index, spans, units, *how, 16)
    by_token = ops.weigh(batch.q, index, spans, single, *how, 1)
    assert torch.equal(by_unit, by_token)
    want = REFERENCE.weigh(batch.q, index, spans, units, *how, 16)
    torch.testing.assert_close(by_unit, want, rtol=1e-4, atol=1e-4)


def test_kv_heads_that_read_unlike_numbers_leave_out_their_own(ops: CpuOps) -> None:
    batch, index = make_residual(ops, [300, 257], 2, 4, 64, torch.float32, 64, 4)
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)
    shape = (batch.q, batch.keys, index, batch.candidates, 0.2, Reduction.MAX_SOFTMAX)
    counts = torch.tensor([[60, 190], [230, 90]], dtype=torch.int32)
    scores = REFERENCE.score_codes(*shape)
    listed = ops.select(scores, batch.candidates, lengths, counts)
    assert torch.equal(listed.counts, counts)
    got = weighed(ops, batch, index, listed)
    torch.testing.assert_close(got, weighed(REFERENCE, batch, index, listed), rtol=1e-4, atol=1e-4)
    for head in range(2):  # as where every KV head reads as much as this one
        same = ops.select(scores, batch.candidates, lengths, counts[:, head].contiguous())
        assert torch.equal(weighed(ops, batch, index, same)[:, head], got[:, head])


@pytest.mark.parametrize("shape", SHAPES)
def test_attending_and_estimating_at_once_is_one_after_the_other(ops: CpuOps, shape: tuple) -> None:
    batch, index = make_residual(ops, *shape[:4], torch.bfloat16, *shape[4:])
    lengths, spans = torch.tensor(batch.lengths, dtype=torch.int32), batch.candidates
    counts = (spans.begin + lengths - spans.end + lengths // 5).clamp(max=lengths)
    chosen, weights = ops.choose(
        ScoreInputs(
            *(batch.q, batch.keys, {}, index, spans, lengths, counts, 0.2),
            *(Reduction.MAX_SOFTMAX, 1),
        ),
        2,
    )
    cache, how = (batch.keys, batch.values), (torch.ones_like(counts), 0.2, 1)
    out, lse = ops.attend(batch.q, *cache, chosen.physical, chosen.counts, *how)
    got = ops.attend_all(batch.q, cache, chosen, *how, Rest(weights, index))
    assert torch.equal(got[0], ops.estimate(weights, index, out, lse)[0])
    assert torch.equal(got[1], lse)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rows_choice_and_rest_do_not_depend_on_its_company(ops: CpuOps, shape: tuple) -> None:
    batch, index = make_residual(ops, *shape[:4], torch.bfloat16, *shape[4:])
    read = torch.randn(*batch.q.shape[:3], batch.values.shape[-1]).bfloat16()

    def step(of: Batch, its: ResidualIndex, state: torch.Tensor) -> list[torch.Tensor]:
        lengths, spans = torch.tensor(of.lengths, dtype=torch.int32), of.candidates
        counts = (spans.begin + lengths - spans.end + lengths // 5).clamp(max=lengths)
        inputs = ScoreInputs(
            *(of.q, of.keys, {}, its, spans, lengths, counts, 0.2, Reduction.MAX_SOFTMAX, 1)
        )
        chosen, weights = ops.choose(inputs, 2)
        lse = torch.zeros(of.q.shape[:3])
        width = int(counts.max())
        return [chosen.logical[..., :width], weights, *ops.estimate(weights, its, state, lse)]

    threads = torch.get_num_threads()
    together = step(batch, index, read)
    try:
        for count in (2, 16):  # the latter are more than lists
            torch.set_num_threads(count)
            again = step(batch, index, read)
            assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    finally:
        torch.set_num_threads(threads)
    for row, length in enumerate(batch.lengths):
        its = replace(index, table=index.table[row : row + 1, : length // index.segment_size])
        alone = step(batch.alone(row), its, read[row : row + 1].contiguous())
        for a, b in zip(together, alone, strict=True):
            there = b.shape[-1]
            assert torch.equal(a[row][..., :there], b[0])
