"""Units of eight tokens and of one: landmarks, misfits, selection and attention."""

import pytest
import torch
from cases import EPS, allowed_error, attention, make_batch
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.selection.shadowkv import LANDMARK, MISFIT
from sgl_sparsekv.types import Candidates, Reduction

REFERENCE = load_reference()
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [  # lengths, H, G, D
    ([511, 9], 8, 4, 128),
    ([400, 1, 77], 2, 1, 80),
    ([250], 2, 7, 64),
    ([100, 333], 1, 8, 96),
    ([200], 2, 3, 256),
    ([90], 2, 2, 37),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_landmarks_and_misfits(ops: CpuOps, shape: tuple, dtype: torch.dtype):
    _, heads, _, dim = shape
    keys = torch.randn(40 * 8, heads, dim).to(dtype)
    keys[8:16], keys[17, 0], keys[26, :, 1:] = 0, 0, 0
    units = torch.randperm(40)[:30]
    units = torch.cat((units, torch.tensor([1, 2, 3]))).unique()
    for summary, width in ((LANDMARK, dim), (MISFIT, 1)):
        got = torch.full((40, heads, 1, width), torch.nan, dtype=dtype)
        want = got.clone()
        ops.summarise(summary, keys, got, units)
        REFERENCE.summarise(summary, keys, want, units)
        written = ~want.isnan()
        assert torch.equal(written, ~got.isnan())
        largest = want.nan_to_num(0).double().abs().amax(-1, keepdim=True)
        error = (got.double() - want.double()).abs()
        allowed = (summary.ulps * 2 * EPS[dtype] * largest + 1e-6).expand(error.shape)
        assert (error[written] <= allowed[written]).all()


def test_what_is_not_a_number_stays_so(ops: CpuOps):
    keys = torch.randn(24, 1, 64)
    keys[3, 0, 5], keys[20, 0, 6] = torch.nan, torch.inf
    for summary, width in ((LANDMARK, 64), (MISFIT, 1)):
        fields = torch.zeros(3, 1, 1, width)
        ops.summarise(summary, keys, fields, torch.arange(3))
        assert fields[0].isnan().any() and fields[1].isfinite().all()
        assert not fields[2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_landmark_scores(ops: CpuOps, shape: tuple, dtype: torch.dtype):
    batch = make_batch(*shape, dtype, unit_size=8)
    fields = torch.full((batch.keys.shape[0] // 8, shape[1], 1, shape[3]), torch.nan, dtype=dtype)
    for row, (begin, end) in enumerate(
        zip(batch.candidates.begin, batch.candidates.end, strict=True)
    ):
        REFERENCE.summarise(LANDMARK, batch.keys, fields, batch.table[row, begin:end].long())
    scale = shape[3] ** -0.5
    for reduction in Reduction:
        args = (LANDMARK, batch.q, fields, batch.candidates, scale, reduction)
        got, want = ops.score(*args), REFERENCE.score(*args)
        inside = want > -torch.inf
        assert torch.equal(inside, got > -torch.inf)
        size = batch.q.float().norm(dim=-1).max() * 3 * shape[3] ** 0.5
        assert (got - want)[inside].abs().amax(0, keepdim=True).le(2.0**-22 * size.clamp(16)).all()


@pytest.mark.parametrize("unit_size", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_attend_over_chosen_chunks_and_tokens(ops: CpuOps, shape: tuple, dtype, unit_size: int):
    batch = make_batch(*shape, dtype, unit_size=unit_size)
    rows, heads, _, dim = batch.q.shape
    counts = (batch.num_units * 2 // 3).clamp(min=1)
    table = torch.full((rows, heads, int(counts.max())), -(10**6), dtype=torch.int32)
    listed = torch.zeros(batch.keys.shape[:2], dtype=torch.bool)
    slots = {}
    for row, count in enumerate(counts.tolist()):
        for head in range(heads):
            best = torch.randperm(int(batch.num_units[row]) - 1)[: count - 1].sort().values
            units = batch.table[row][torch.cat((best, batch.num_units[row : row + 1] - 1))].long()
            tokens = (units[:, None] * unit_size + torch.arange(unit_size)).flatten()
            slots[row, head] = tokens[: (count - 1) * unit_size + int(batch.tails[row])]
            table[row, head, :count] = units.int()
            listed[slots[row, head], head] = True
    batch.keys[~listed], batch.values[~listed] = torch.nan, torch.nan
    args = (table, counts, batch.tails, dim**-0.5, unit_size)
    out, lse = ops.attend(batch.q, batch.keys, batch.values, *args)
    for (row, head), tokens in slots.items():
        parts = (batch.q[row, head], batch.keys[tokens, head], batch.values[tokens, head])
        exact = attention(*(x.double() for x in parts), dim**-0.5)
        low = attention(*(x.float() for x in parts), dim**-0.5)
        error = (out[row, head].double() - exact[0]).abs()
        assert (error <= allowed_error(exact[0], low[0], dtype)).all()
        error = (lse[row, head].double() - exact[1]).abs()
        assert (error <= allowed_error(exact[1], low[1], torch.float32) + 1e-6).all()


KINDS = {
    "noise": lambda x: x,
    "ties": lambda x: (3 * x).round(),
    "equal": torch.zeros_like,
    "nothing": lambda x: torch.full_like(x, -torch.inf),
    "rising": lambda x: x.sort(-1).values,
    "one run": lambda x: torch.cat((x[..., :300] + 50, x[..., 300:]), -1),
    "not finite": lambda x: (
        x.masked_fill(x > 2.4, torch.nan)
        .masked_fill((x > 2) & (x < 2.2), torch.inf)
        .masked_fill(x < -2, -torch.nan)
        .masked_fill(x.abs() < 0.5, -torch.inf)
    ),
    "largest": lambda x: x.masked_fill(x > 1.5, torch.finfo(torch.float32).max),
}


def check_selection(ops: CpuOps, scores: torch.Tensor, kept: int) -> None:
    """The same units as the reference, with 16 sinks and a window of 17."""
    width = scores.shape[-1]

    def one(value: int) -> torch.Tensor:
        return torch.full((1,), value, dtype=torch.int32)

    candidates = Candidates(torch.randperm(width)[None].int(), one(16), one(width - 17))
    args = (scores, candidates, one(width), one(kept))
    got, want = ops.select(*args), REFERENCE.select(*args)
    assert torch.equal(got.logical, want.logical) and torch.equal(got.physical, want.physical)


@pytest.mark.parametrize("kind", KINDS)
def test_select_tokens(ops: CpuOps, kind: str):
    for width in (100, 1000, 5003):
        scores = KINDS[kind](torch.randn(1, 2, width))
        for kept in (33, 34, 60, 100, 150, width // 3, width - 1, width):
            if 33 <= kept <= width:
                check_selection(ops, scores, kept)


@pytest.mark.parametrize("kind", ["noise", "ties", "not finite"])
def test_select_from_131072_tokens(ops: CpuOps, kind: str):
    check_selection(ops, KINDS[kind](torch.randn(1, 1, 131072)), 2048)
