"""Each Triton kernel alone gives what the reference gives, and reads nothing else.

What the interpreter changes about the arithmetic is said in `triton_kit`: there the matrix products
are tested in float32, on a GPU with 16-bit operands.
"""

import pytest
import torch
from cases import EPS, Batch, allowed_error, attention, make_batch
from triton_kit import (
    ALL,
    REDUCTIONS,
    REFERENCE,
    SHAPES,
    SUMMARIES,
    HostOps,
    candidate_fields,
    compare_attention,
    score_band,
    scores_in,
)

from sgl_sparsekv.types import Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def batch_of(shape: tuple) -> Batch:
    """A batch of one of SHAPES."""
    lengths, heads, group, dim, unit, dtype = shape
    return make_batch(lengths, heads, group, dim, dtype, unit)


@pytest.fixture(scope="module")
def ops() -> HostOps:
    """The Triton ops, on tensors of the host."""
    return HostOps()


@pytest.mark.parametrize("shape", [([511, 40, 17], 2, 1, dim, unit, dtype) for dim, unit, dtype in (
    (128, 16, torch.bfloat16), (64, 32, torch.float16), (96, 64, torch.float32),
    (256, 16, torch.float16),
)])  # fmt: skip
def test_bounds_are_exact_and_mean_std_rounds_once(ops: HostOps, shape: tuple) -> None:
    batch = batch_of(shape)
    for name in ALL:
        got, want = candidate_fields(batch, name, ops), candidate_fields(batch, name)
        assert torch.equal(got.isnan(), want.isnan())
        if name != "mean_std":
            assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))
        else:
            error = (got.double() - want.double()).abs().nan_to_num(0)
            band = 2.02 * EPS[batch.keys.dtype] * want.double().abs().nan_to_num(0) + 1e-6
            assert (error <= band).all()


def test_min_max_keeps_nan_and_infinities(ops: HostOps) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        keys = torch.randn(32, 2, 64).to(dtype)
        keys[3, 0, 5], keys[0, 1, 1], keys[15, 1, 2] = torch.nan, torch.nan, torch.nan
        keys[4, 0, 6], keys[20, 1, 23] = torch.inf, -torch.inf
        got, want = torch.zeros(2, 2, 2, 64, dtype=dtype), torch.zeros(2, 2, 2, 64, dtype=dtype)
        for device, fields in ((ops, got), (REFERENCE, want)):
            device.summarise(SUMMARIES["min_max"], keys, fields, torch.tensor([1, 0]))
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(0.5), want.nan_to_num(0.5))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores(ops: HostOps, shape: tuple, reduction: Reduction) -> None:
    batch = batch_of(shape)
    scale = batch.q.shape[-1] ** -0.5
    for name, summary in ALL.items():
        fields = candidate_fields(batch, name)
        got = ops.score(summary, batch.q, fields, batch.candidates, scale, reduction)
        compare_scores(got, name, batch, fields, reduction)


@pytest.mark.parametrize("shape,reduction", [
    (SHAPES[0], Reduction.MAX_SOFTMAX), (SHAPES[1], Reduction.MEAN_SOFTMAX),
    (SHAPES[2], Reduction.MEAN_SOFTMAX), (SHAPES[3], Reduction.MAX_SOFTMAX),
    (SHAPES[6], Reduction.MAX_SOFTMAX),
])  # fmt: skip
def test_exact_scores(ops: HostOps, shape: tuple, reduction: Reduction) -> None:
    batch = batch_of(shape)
    scale, keys = batch.q.shape[-1] ** -0.5, batch.keys.clone()
    candidates = batch.candidates
    for row, length in enumerate(batch.lengths):  # full candidate units alone are read
        kept = torch.zeros(length, dtype=torch.bool)
        kept[candidates.begin[row] * batch.unit_size : candidates.end[row] * batch.unit_size] = True
        keys[batch.slots(row)[~kept]] = torch.nan
    got = ops.score_exact(batch.q, keys, candidates, scale, reduction, batch.unit_size)
    compare_scores(got, "exact", batch, keys, reduction)


def compare_scores(
    got: torch.Tensor, name: str, batch: Batch, source: torch.Tensor, reduction: Reduction
) -> None:
    """-inf where the reference is, else within the error of float32 sums."""
    scale = batch.q.shape[-1] ** -0.5
    args = (name, batch.q, source, batch.candidates, scale, reduction, batch.unit_size)
    exact, low = scores_in(torch.float64, *args), scores_in(torch.float32, *args)
    assert got.dtype is torch.float32 and got.shape == exact.shape
    inside = exact > -torch.inf
    assert torch.equal(inside, got > -torch.inf)
    band = score_band(exact, low, name, batch.q, scale)
    assert ((got.double() - exact).abs()[inside] <= band[inside]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_attend_over_all_units(ops: HostOps, shape: tuple) -> None:
    batch = batch_of(shape)
    rows, heads, _, dim = batch.q.shape
    for row in range(rows):
        batch.keys[batch.slots(row)] *= 1 + row / 4
    table = batch.table[:, None, :].expand(rows, heads, -1)
    args = (batch.num_units, batch.tails, dim**-0.5, batch.unit_size)
    out, lse = ops.attend(batch.q, batch.keys, batch.values, table, *args)
    assert out.dtype is batch.q.dtype and lse.dtype is torch.float32
    for row in range(rows):
        compare_attention(out, lse, batch, row, None, dim**-0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attend_reads_only_its_head_list(ops: HostOps, dtype: torch.dtype) -> None:
    """V has a head size of its own, and each head its own list."""
    batch = make_batch([700, 33, 90], heads=3, group=4, dim=128, dtype=dtype)
    batch.values = batch.values[..., :64].clone()
    rng = torch.Generator().manual_seed(3)
    counts = torch.tensor([20, 1, 4], dtype=torch.int32)
    logical = torch.zeros(3, 3, 25, dtype=torch.int32)
    table = torch.full((3, 3, 25), -(10**6), dtype=torch.int32)
    listed = torch.zeros(batch.keys.shape[:2], dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        units = int(batch.num_units[row])
        for head in range(3):
            best = torch.randperm(units - 1, generator=rng)[: count - 1].sort().values
            logical[row, head, :count] = torch.cat((best, torch.tensor([units - 1])))
            chosen = logical[row, head, :count].long()
            table[row, head, :count] = batch.table[row][chosen]
            tokens = (chosen[:, None] * 16 + torch.arange(16)).reshape(-1)
            listed[batch.slots(row)[tokens[tokens < batch.lengths[row]]], head] = True
    batch.keys[~listed], batch.values[~listed] = torch.nan, torch.nan
    args = (table, counts, batch.tails, 0.1, 16)
    out, lse = ops.attend(batch.q, batch.keys, batch.values, *args)
    assert out.shape == (3, 3, 4, 64)
    for row, count in enumerate(counts.tolist()):
        compare_attention(out, lse, batch, row, logical[row, :, :count], 0.1)


def test_merge_joins_disjoint_parts(ops: HostOps) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 64, generator=rng, dtype=torch.float64) for n in (37, 50, 50))
    a, b = attention(q, k[:20], v[:20], 0.125), attention(q, k[20:], v[20:], 0.125)
    want, want_lse = attention(q, k, v, 0.125)
    low, low_lse = attention(q.float(), k.float(), v.float(), 0.125)
    out, lse = ops.merge(a[0].float(), a[1].float(), b[0].float(), b[1].float())
    assert ((out.double() - want).abs() <= allowed_error(want, low, torch.float32)).all()
    assert (
        (lse.double() - want_lse).abs() <= allowed_error(want_lse, low_lse, torch.float32)
    ).all()


def test_no_rows_and_no_units(ops: HostOps) -> None:
    batch = make_batch([20], dim=128)
    fields = torch.zeros(batch.keys.shape[0] // 16, 2, 2, 128)
    ops.summarise(SUMMARIES["min_max"], batch.keys, fields, torch.empty(0, dtype=torch.int64))
    assert not fields.any()
    none = Batch(batch.q[:0], batch.keys, batch.values, [], batch.table[:0], 16)
    args = (none.q, fields, none.candidates, 1.0, Reduction.MAX_SOFTMAX)
    scores = ops.score(SUMMARIES["min_max"], *args)
    chosen = ops.select(scores, none.candidates, none.num_units, none.num_units)
    args = (chosen.physical, none.num_units, none.tails, 1.0, 16)
    out, lse = ops.attend(none.q, batch.keys, batch.values, *args)
    assert scores.shape[:2] == (0, 2) and out.shape == (0, 2, 4, 128) and lse.shape == (0, 2, 4)
