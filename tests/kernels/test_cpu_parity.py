"""The CPU kernels give what the reference gives, and read nothing else."""

import pytest
import torch
from cases import EPS, Batch, allowed_error, attention, make_batch
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Candidates, Reduction, TokenLists

REFERENCE = load_reference()
SUMMARIES = [Quest.summary, MeanStd.summary]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [  # lengths, H, G, D, unit size
    ([511], 8, 4, 128, 16),
    ([1, 4097, 17], 2, 1, 80, 16),
    ([15, 16, 17], 2, 7, 64, 4),
    ([300, 33, 1] * 5 + [64, 65], 1, 8, 96, 16),
    ([1000, 129], 3, 4, 256, 16),
    ([200], 2, 3, 37, 16),
]


def batch_of(shape: tuple[list[int], int, int, int, int], dtype: torch.dtype) -> Batch:
    """A batch of one of SHAPES."""
    lengths, heads, group, dim, unit = shape
    return make_batch(lengths, heads, group, dim, dtype, unit)


def fields_of(batch: Batch, summary: object, ops: CpuOps) -> torch.Tensor:
    """Fields of every full unit that belongs to a candidate; NaN elsewhere."""
    fields = torch.full(
        (batch.keys.shape[0] // batch.unit_size, batch.keys.shape[1], 2, batch.keys.shape[2]),
        torch.nan,
        dtype=batch.keys.dtype,
    )
    units = [
        batch.table[row, begin:end]
        for row, (begin, end) in enumerate(
            zip(batch.candidates.begin, batch.candidates.end, strict=True)
        )
    ]
    ops.summarise(summary, batch.keys, fields, torch.cat(units).long())
    return fields


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_min_max_is_exact_and_mean_std_rounds_once(ops: CpuOps, shape: tuple, dtype: torch.dtype):
    batch = batch_of(shape, dtype)
    for summary in SUMMARIES:
        got = fields_of(batch, summary, ops)
        want = fields_of(batch, summary, REFERENCE)
        if summary.name == "min_max":
            assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))
        else:
            written = ~want.isnan()
            assert torch.equal(written, ~got.isnan())
            error = (got.double() - want.double())[written].abs()
            assert (error <= (2.02 * EPS[dtype] * want.double()[written].abs() + 1e-6)).all()


def test_min_max_keeps_nan_and_infinities(ops: CpuOps):
    for dtype in DTYPES:
        keys = torch.randn(32, 2, 24).to(dtype)
        keys[3, 0, 5], keys[0, 1, 1], keys[15, 1, 2] = torch.nan, torch.nan, torch.nan
        keys[4, 0, 6], keys[20, 1, 23] = torch.inf, -torch.inf
        fields = torch.zeros(2, 2, 2, 24, dtype=dtype)
        want = torch.zeros_like(fields)
        ops.summarise(Quest.summary, keys, fields, torch.tensor([1, 0]))
        REFERENCE.summarise(Quest.summary, keys, want, torch.tensor([1, 0]))
        assert torch.equal(fields.isnan(), want.isnan())
        assert torch.equal(fields.nan_to_num(0.5), want.nan_to_num(0.5))


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores(ops: CpuOps, shape: tuple, dtype: torch.dtype, reduction: Reduction):
    batch = batch_of(shape, dtype)
    scale = batch.q.shape[-1] ** -0.5
    for summary in SUMMARIES:
        fields = fields_of(batch, summary, REFERENCE)
        args = (batch.candidates, scale, reduction)
        want = REFERENCE.score(summary, batch.q, fields, *args)
        compare_scores(ops.score(summary, batch.q, fields, *args), want, batch, summary.name)
    keys = batch.keys.clone()
    for row, length in enumerate(batch.lengths):  # exact scores read full candidate units alone
        kept = torch.zeros(length, dtype=torch.bool)
        candidates = batch.candidates
        kept[candidates.begin[row] * batch.unit_size : candidates.end[row] * batch.unit_size] = True
        keys[batch.slots(row)[~kept]] = torch.nan
    got = ops.score_exact(batch.q, keys, *args, batch.unit_size)
    want = REFERENCE.score_exact(batch.q, keys, *args, batch.unit_size)
    compare_scores(got, want, batch, "exact")


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_that_are_shares_of_all_attention(ops: CpuOps, shape: tuple):
    """What is read in any case joins the softmax, and pages are scored within their bound."""
    batch = batch_of(shape, torch.float32)
    rows, heads, group, dim = batch.q.shape
    known = torch.randn(rows, heads, group) * 3
    how = (batch.candidates, dim**-0.5, Reduction.MEAN_SOFTMAX)
    for summary in (Quest.shares, MeanStd.summary):
        fields = fields_of(batch, summary, REFERENCE)
        want = REFERENCE.score(summary, batch.q, fields, *how, known)
        compare_scores(ops.score(summary, batch.q, fields, *how, known), want, batch, summary.name)
        assert (want.exp().sum(-1) <= 1 + 1e-5).all()
    got = ops.score_exact(batch.q, batch.keys, *how, batch.unit_size, known)
    want = REFERENCE.score_exact(batch.q, batch.keys, *how, batch.unit_size, known)
    compare_scores(got, want, batch, "exact")


def compare_scores(got: torch.Tensor, want: torch.Tensor, batch: Batch, what: str) -> None:
    """Equal -inf, and else within the error of float32 sums over D terms."""
    assert got.shape == want.shape and got.dtype is torch.float32
    inside = want > -torch.inf
    assert torch.equal(inside, got > -torch.inf), what
    size = (batch.q.float().norm(dim=-1).max() * 3 * batch.q.shape[-1] ** 0.5).item()
    if inside.any():
        assert (got - want)[inside].abs().max().item() <= 2.0**-22 * max(size, 16), what


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_select_indices_with_ties(ops: CpuOps, levels: int):
    rng = torch.Generator().manual_seed(levels)
    units = [1, 3, 16, 40, 260, 2100]
    num_units = torch.tensor(units, dtype=torch.int32)
    table = torch.randint(0, 10**6, (len(units), 2100), generator=rng, dtype=torch.int32)
    begin = num_units.clamp(max=2)
    candidates = Candidates(table, begin, torch.maximum(begin, num_units - 3))
    scores = torch.randint(-levels, levels, (len(units), 3, 2100), generator=rng) / levels
    scores[torch.rand(scores.shape, generator=rng) < 0.2] = -torch.inf
    scores[:, 1][scores[:, 1] == 0] = -0.0
    for counts in ([1, 3, 16, 40, 260, 2100], [1, 3, 9, 20, 128, 700], [1, 2, 5, 6, 6, 6]):
        kept = torch.tensor(counts, dtype=torch.int32)
        got = ops.select(scores, candidates, num_units, kept)
        want = REFERENCE.select(scores, candidates, num_units, kept)
        assert torch.equal(got.logical, want.logical)
        assert torch.equal(got.physical, want.physical)
        assert torch.equal(got.counts, want.counts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_attend_over_all_units(ops: CpuOps, shape: tuple, dtype: torch.dtype):
    batch = batch_of(shape, dtype)
    rows, heads, _, dim = batch.q.shape
    for row in range(rows):
        batch.keys[batch.slots(row)] *= 1 + row
    table = batch.table[:, None, :].expand(rows, heads, -1)
    args = (batch.num_units, batch.tails, dim**-0.5, batch.unit_size)
    out, lse = ops.attend(batch.q, batch.keys, batch.values, table, *args)
    assert out.dtype is dtype and lse.dtype is torch.float32
    for row in range(rows):
        slots = batch.slots(row)
        for head in range(heads):
            parts = (batch.q[row, head], batch.keys[slots, head], batch.values[slots, head])
            exact = attention(*(x.double() for x in parts), dim**-0.5)
            low = attention(*(x.float() for x in parts), dim**-0.5)
            error = (out[row, head].double() - exact[0]).abs()
            assert (error <= allowed_error(exact[0], low[0], dtype)).all()
            error = (lse[row, head].double() - exact[1]).abs()
            assert (error <= allowed_error(exact[1], low[1], torch.float32) + 1e-6).all()
    own_lists = ops.attend(batch.q, batch.keys, batch.values, table.contiguous(), *args)
    assert torch.equal(out, own_lists[0]) and torch.equal(lse, own_lists[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_reads_only_its_head_list(ops: CpuOps, dtype: torch.dtype):
    batch = make_batch([700, 33, 90], heads=3, group=4, dim=128, dtype=dtype)
    rng = torch.Generator().manual_seed(3)
    counts = torch.tensor([20, 1, 4], dtype=torch.int32)
    table = torch.full((3, 3, 25), -(10**6), dtype=torch.int32)
    listed = torch.zeros(batch.keys.shape[:2], dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        units = int(batch.num_units[row])
        for head in range(3):
            best = torch.randperm(units - 1, generator=rng)[: count - 1].sort().values
            chosen = torch.cat((best, torch.tensor([units - 1])))
            table[row, head, :count] = batch.table[row][chosen]
            tokens = (chosen[:, None] * 16 + torch.arange(16)).reshape(-1)
            tokens = tokens[tokens < batch.lengths[row]]
            listed[batch.slots(row)[tokens], head] = True
    batch.keys[~listed], batch.values[~listed] = torch.nan, torch.nan
    args = (table, counts, batch.tails, 0.1, 16)
    out, lse = ops.attend(batch.q, batch.keys, batch.values, *args)
    want, want_lse = REFERENCE.attend(batch.q, batch.keys, batch.values, *args)
    assert not want.isnan().any()
    assert (out.float() - want.float()).abs().max() <= 4 * EPS[dtype] + 2e-6
    assert (lse - want_lse).abs().max() <= 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_attend_over_lists_reads_what_they_list(ops: CpuOps, dtype: torch.dtype, packed: bool):
    batch = make_batch([1700, 33, 90], heads=3, group=4, dim=128, dtype=dtype)
    rng = torch.Generator().manual_seed(4)
    counts = [[600, 7, 513], [1, 33, 20], [64, 65, 2]]
    positions, places, listed = [], [], torch.zeros(batch.keys.shape[:2], dtype=torch.bool)
    for row, (length, own) in enumerate(zip(batch.lengths, counts, strict=True)):
        kept = torch.full((3, max(own) + 5), -(10**6), dtype=torch.int32)
        lie = kept.clone()
        for head, count in enumerate(own):
            chosen = torch.randperm(length, generator=rng)[:count].sort().values
            kept[head, :count] = chosen
            lie[head, :count] = torch.randperm(length, generator=rng)[:count] if packed else chosen
            listed[batch.slots(row)[lie[head, :count].long()], head] = True
        positions.append(kept)
        places.append(lie)
    batch.keys[~listed], batch.values[~listed] = torch.nan, torch.nan
    slots = [batch.slots(row).int() for row in range(3)]
    lists = TokenLists(positions, places, slots, counts)
    pool = (batch.q, batch.keys, batch.values)
    out, lse = ops.attend_lists(*pool, lists, 0.1)
    chosen = lists.selection
    for row, own in enumerate(counts):
        for head, count in enumerate(own):
            assert torch.equal(chosen.logical[row, head, :count], positions[row][head, :count])
            assert (chosen.logical[row, head, count:] == -1).all()
    same = ops.attend(*pool, chosen.physical, chosen.counts, torch.ones(3).int(), 0.1, 1)
    assert torch.equal(out, same[0]) and torch.equal(lse, same[1])
    want, want_lse = REFERENCE.attend_lists(*pool, lists, 0.1)
    assert not want.isnan().any()
    assert (out.float() - want.float()).abs().max() <= 4 * EPS[dtype] + 2e-6
    assert (lse - want_lse).abs().max() <= 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix,new,heads,group,dim", [
    (0, 1, 2, 4, 64), (0, 33, 2, 1, 80), (100, 1, 2, 7, 64), (17, 40, 3, 4, 128),
    (300, 130, 2, 8, 96), (1, 2, 1, 3, 256), (5, 70, 2, 3, 37),
])  # fmt: skip
def test_prefill(
    ops: CpuOps, dtype: torch.dtype, prefix: int, new: int, heads: int, group: int, dim: int
):
    length = prefix + new
    batch = make_batch([length], heads, group, dim, dtype)
    slots = batch.slots(0)
    q = torch.randn(new, heads * group, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = ops.prefill(q, batch.keys, batch.values, slots, dim**-0.5)
    assert out.dtype is dtype and out.shape == q.shape
    future = torch.arange(length) > torch.arange(prefix, length)[:, None]
    for head in range(heads * group):
        k, v = batch.keys[slots, head // group], batch.values[slots, head // group]
        bias = torch.zeros(new, length).masked_fill(future, -torch.inf)
        results = []
        for wide in (torch.float64, torch.float32):
            logits = q[:, head].to(wide) @ k.to(wide).T * dim**-0.5 + bias.to(wide)
            results.append(logits.softmax(-1) @ v.to(wide))
        band = allowed_error(*results, dtype)
        if dtype is not torch.float32:  # weights are rounded to the element type once
            weights = logits.softmax(-1).double() @ v.double().abs()
            band = band + 2 * EPS[dtype] * weights
        assert ((out[:, head].double() - results[0]).abs() <= band).all()


def test_merge_joins_disjoint_parts(ops: CpuOps):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 64, generator=rng, dtype=torch.float64) for n in (4, 50, 50))
    a, b = attention(q, k[:20], v[:20], 0.125), attention(q, k[20:], v[20:], 0.125)
    out, lse = ops.merge(a[0].float(), a[1].float(), b[0].float(), b[1].float())
    want, want_lse = attention(q, k, v, 0.125)
    assert (out.double() - want).abs().max() < 1e-6
    assert (lse.double() - want_lse).abs().max() < 1e-6
