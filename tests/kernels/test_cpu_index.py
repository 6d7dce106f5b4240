"""Records of segments: as good as those of the torch build, and the same bits in any company."""

from collections.abc import Iterator

import pytest
import torch
from cases import EPS
from coded import bunches, distances, empty_index
from sgl_sparsekv.kernels.cpu.ops import CpuOps

from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.segments.index import clusters, products
from sgl_sparsekv.summaries import CodeSummary

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CASES = [  # summary, H, D, tokens not to learn from
    (clusters(256, 16), 2, 128, 16),
    (clusters(128, 8), 1, 64, 0),
    (clusters(96, 4), 1, 80, 16),
    (clusters(64, 16), 1, 256, 0),
    (products(256, 2, 4), 2, 128, 16),
    (products(128, 4, 5), 1, 96, 0),
    (products(128, 1, 6), 1, 80, 16),
    (products(96, 8, 3), 1, 64, 0),
    (products(64, 2, 4), 1, 256, 16),
]


@pytest.fixture
def threads() -> Iterator[int]:
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def built(ops: CpuOps, summary: CodeSummary, keys: torch.Tensor, skip: int = 0) -> SegmentIndex:
    """The record 0 of one segment of keys `[S, H, D]`."""
    index = empty_index(summary, 1, keys)
    ids = torch.zeros(1, dtype=torch.int64)
    slots = torch.arange(summary.segment_size)[None]
    ops.index_segments(summary, keys, slots, ids + skip, index, ids)
    return index


def own(far: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Distance of each token from the centroid of its code: `[H, m, S, K]` -> `[H, m, S]`."""
    return far.gather(-1, codes.long()[..., None])[..., 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_records_are_as_good_as_those_of_the_torch_build(ops: CpuOps, case: tuple, dtype):
    summary, heads, dim, skip = case
    keys = bunches(summary.segment_size, heads, dim, dtype)
    index = built(ops, summary, keys, skip)
    codes, book = index.codes[0], index.codebooks[0]
    far = distances(keys, codes, book, summary.cosine)
    want_codes, want_book = summary.build(keys, skip)
    want = own(distances(keys, codes, want_book, summary.cosine), want_codes)[..., skip:]
    got = own(far, codes)
    assert not book.isnan().any() and codes.max() < summary.codes
    assert (got[..., skip:].sum(-1) <= 1.001 * want.sum(-1) + 1e-9).all()
    counts = torch.nn.functional.one_hot(codes.long()[..., skip:], summary.codes).sum(2)
    if not summary.cosine:
        size = keys.double().square().sum(-1).max()
        assert (got <= far.amin(-1) + 2.0**-20 * size).all()
        return
    assert summary.capacity is None or counts.max() <= summary.capacity
    assert (got[..., :skip] <= far[..., :skip, :].amin(-1) + 2.0**-20).all()
    member = torch.nn.functional.one_hot(codes[:, 0, skip:].long(), summary.codes).double()
    means = member.mT @ keys[skip:].movedim(0, 1).double() / counts[:, 0, :, None].clamp(min=1)
    error = (book[:, 0].double() - means).abs()
    sums = counts[:, 0, :, None] * EPS[torch.float32] * keys.double().abs().max()
    assert (error <= 1.01 * EPS[dtype] * means.abs() + sums).all()  # float32, term by term


@pytest.mark.parametrize("case", CASES[::2])
def test_bits_do_not_depend_on_company_threads_or_places(ops: CpuOps, case: tuple, threads: int):
    summary, heads, dim, _ = case
    size = summary.segment_size
    keys = bunches(4 * size, heads, dim, torch.bfloat16)
    slots = torch.randperm(4 * size)[: 3 * size].view(3, size)
    skips, records = torch.tensor([16, 0, 3]), torch.tensor([2, 4, 1])
    together = empty_index(summary, 5, keys)
    ops.index_segments(summary, keys, slots, skips, together, records)
    assert together.codebooks[[0, 3]].isnan().all() and (together.codes[[0, 3]] == 255).all()
    torch.set_num_threads(3)
    again = empty_index(summary, 5, keys)
    ops.index_segments(summary, keys, slots, skips, again, records)
    torch.set_num_threads(threads)
    for i, record in enumerate(records.tolist()):
        one = built(ops, summary, keys[slots[i]], int(skips[i]))
        for found in (again.codes[record], one.codes[0]):
            assert torch.equal(found, together.codes[record])
        for found in (again.codebooks[record], one.codebooks[0]):
            assert torch.equal(found, together.codebooks[record])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("summary", [clusters(64, 4), products(64, 2, 4)])
def test_keys_that_are_not_finite_count_as_zero(ops: CpuOps, summary: CodeSummary, dtype):
    keys = bunches(64, 2, 96, dtype)
    bad = torch.rand(keys.shape, generator=torch.Generator().manual_seed(5))
    zeroed = keys.masked_fill(bad < 0.02, 0)
    keys[bad < 0.02], keys[bad < 0.015], keys[bad < 0.01] = -torch.inf, torch.inf, torch.nan
    got, want = built(ops, summary, keys), built(ops, summary, zeroed)
    assert torch.equal(got.codes, want.codes) and torch.equal(got.codebooks, want.codebooks)


@pytest.mark.parametrize("value", [0.0, 1.0, 3e4])
def test_equal_keys_are_split_by_capacity_or_share_a_code(ops: CpuOps, value: float):
    keys = torch.full((128, 1, 64), value)
    index = built(ops, clusters(128, 8), keys)
    assert torch.bincount(index.codes.flatten().long()).max() <= clusters(128, 8).capacity
    used = index.codebooks[0, 0, 0][index.codes.flatten().long()]
    assert torch.equal(used, keys[:, 0])
    index = built(ops, products(128, 2, 3), keys)
    assert (index.codes == index.codes[..., :1]).all() and (
        index.codebooks[0, 0, 0, 0] == value
    ).all()


def test_more_codes_than_tokens_give_every_key_its_own(ops: CpuOps):
    keys = bunches(32, 2, 64, torch.float32)
    index = built(ops, products(32, 2, 8), keys)
    far = distances(keys, index.codes[0], index.codebooks[0], cosine=False)
    assert own(far, index.codes[0]).max() < 1e-9


def test_no_segment_writes_nothing(ops: CpuOps):
    summary = clusters(64, 4)
    keys = bunches(64, 1, 64, torch.float32)
    index, none = empty_index(summary, 1, keys), torch.empty(0, dtype=torch.int64)
    ops.index_segments(summary, keys, none.view(0, 64), none, index, none)
    assert index.codebooks.isnan().all()
