"""Codes of segments by the Triton kernel: the reference's, but where float32 cannot tell.

Whole runs are compared on keys with structure. On others one tie that falls the other way may lead
far away; there each step is judged by itself, beginning with what the kernel found before it.
"""

from dataclasses import replace

import pytest
import torch
from cases import EPS
from coded import bunches, distances, empty_index
from sgl_sparsekv.kernels.triton.index import CodeIndexing, constants_of, index_segments
from sgl_sparsekv.kernels.triton.index import IndexTuning as Shapes
from triton_kit import DEVICE

from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.segments.clusters import quiet
from sgl_sparsekv.segments.exact import directions, product_grid, sum_grid
from sgl_sparsekv.segments.index import clusters, products
from sgl_sparsekv.segments.lloyd import similarities, updated
from sgl_sparsekv.summaries import CodeSummary

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
OPS = CodeIndexing()
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = [  # summary, H, D, tokens not to learn from, type
    (clusters(512, 16), 1, 128, 16, BF16),
    (clusters(128, 32), 2, 64, 0, FP16),
    (clusters(128, 8), 1, 96, 16, FP32),
    (clusters(192, 4), 1, 80, 16, BF16),
    (clusters(64, 16), 1, 256, 0, FP32),
    (products(512, 4, 4), 1, 128, 16, BF16),
    (products(128, 1, 4), 2, 128, 0, FP16),
    (products(64, 2, 5), 1, 96, 16, BF16),
    (products(128, 2, 2), 1, 64, 16, FP32),
    (products(64, 16, 3), 1, 80, 0, FP16),
    (products(64, 1, 4), 1, 256, 0, BF16),
]


def indexed(
    summary: CodeSummary,
    keys: torch.Tensor,
    slots: torch.Tensor,
    skips: torch.Tensor,
    records: torch.Tensor,
    count: int,
) -> SegmentIndex:
    """`count` records, some of them written, on the host."""
    index = empty_index(summary, count, keys)
    index = replace(index, codes=index.codes.to(DEVICE), codebooks=index.codebooks.to(DEVICE))
    there = [x.to(DEVICE) for x in (keys, slots, skips)]
    OPS.index_segments(summary, *there, index, records.to(DEVICE))
    return replace(index, codes=index.codes.cpu(), codebooks=index.codebooks.cpu())


def built(summary: CodeSummary, keys: torch.Tensor, skip: int = 0) -> SegmentIndex:
    """The record 0 of one segment of keys `[S, H, D]`."""
    zero = torch.zeros(1, dtype=torch.int64)
    return indexed(summary, keys, torch.arange(len(keys))[None], zero + skip, zero, 1)


def own(far: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Distance of each token from the centroid of its code: `[H, m, S, K]` -> `[H, m, S]`."""
    return far.gather(-1, codes.long()[..., None])[..., 0]


def rounding(terms: int) -> float:
    """How far float32 may be off in the difference of two inner products of so many terms.

    Relative to the lengths of their factors. Each product errs by half a unit, each sum of them as
    well, and on matrix units a factor is cut to 22 bits.
    """
    return 2 * (terms + 8) * EPS[FP32]


@pytest.mark.parametrize("case", CASES)
def test_codes_and_codebooks_are_those_of_the_reference(case: tuple) -> None:
    summary, heads, dim, skip, dtype = case
    keys = bunches(summary.segment_size, heads, dim, dtype)
    index = built(summary, keys, skip)
    codes, book = index.codes[0], index.codebooks[0]
    want_codes, want_book = summary.build(keys, skip)
    far = distances(keys, codes, want_book, summary.cosine)
    size = 1.0 if summary.cosine else 4 * float(keys.double().square().sum(-1).max())
    gap = (own(far, codes) - own(far, want_codes)).abs()
    stored = 0.0 if summary.cosine else EPS[dtype]
    same = codes == want_codes
    assert (gap[~same] <= size * (rounding(dim) + stored)).all() and same.double().mean() > 0.98
    member = torch.nn.functional.one_hot(codes.long(), summary.codes).bool()
    changed = (member & ~same[..., None]).any(2)
    changed |= (torch.nn.functional.one_hot(want_codes.long(), summary.codes).bool()
                & ~same[..., None]).any(2)  # fmt: skip
    error = (book.double() - want_book.double()).abs().masked_fill(changed[..., None], 0)
    sums = summary.segment_size * EPS[FP32] * keys.double().abs().max()
    assert (error <= 4 * EPS[dtype] * want_book.double().abs() + sums).all()  # truncated bfloat16


@pytest.mark.parametrize("case", [c for c in CASES if not c[0].cosine or c[3]])
def test_what_is_encoded_last_gets_the_nearest_stored_centroid(case: tuple) -> None:
    summary, heads, dim, skip, dtype = case
    keys = torch.randn(summary.segment_size, heads, dim).to(dtype)
    index = built(summary, keys, skip)
    codes, book = index.codes[0], index.codebooks[0]
    far = distances(keys, codes, book, summary.cosine)
    gap = own(far, codes) - far.amin(-1)
    size = 1.0 if summary.cosine else 4 * float(keys.double().square().sum(-1).max())
    ranked = gap[..., :skip] if summary.cosine else gap
    assert (ranked <= size * rounding(dim // summary.subspaces)).all()


@pytest.mark.parametrize(
    "summary, dim, dtype, quiet_keys, seed",
    [
        (clusters(128, 8), 64, BF16, slice(5, None, 16), 0),
        (clusters(64, 2), 96, FP32, slice(5, None, 16), 1),
        # Members of some centroid are all quiet: it stays, and others come back to it.
        (replace(clusters(64, 16), codes=7), 16, FP32, torch.arange(64) % 3 > 0, 3),
        (products(128, 2, 4), 64, FP32, slice(0), 0),
        (products(128, 2, 4), 64, FP32, slice(0), 1),
    ],
)
def test_every_step_follows_from_the_one_before(
    summary: CodeSummary, dim: int, dtype: torch.dtype, quiet_keys: object, seed: int
) -> None:
    """Labels after n updates are the nearest of float64 centroids, made of those after n - 1."""
    keys = torch.randn(summary.segment_size, 1, dim, generator=torch.Generator().manual_seed(seed))
    keys[quiet_keys] *= 0.001
    keys, skip, count = keys.to(dtype), 16, summary.codes - summary.cosine
    parts = keys[skip:].double().movedim(0, 1).unflatten(-1, (summary.subspaces, -1))
    points = parts.movedim(2, 1).flatten(0, 1)
    silent, lengths = torch.zeros(points.shape[:2], dtype=torch.bool), points.square().sum(-1)
    if summary.cosine:
        silent = quiet(keys[skip:])
        points, lengths = directions(points.masked_fill(silent[..., None], 0)), 1.0 * ~silent
    grid, size = product_grid(points), 2 * float(lengths.max())
    centroids = points[:, torch.arange(count) * points.shape[1] // count]
    moved = 0
    for step in range(4):
        short = replace(summary, iterations=step, capacity=None)
        labels = built(short, keys, skip).codes[0, 0, :, skip:].long()
        if summary.cosine:
            assert torch.equal(labels == count, silent)
            labels = labels.masked_fill(silent, 0)
        near = similarities(grid, centroids, summary.cosine)
        mine = near.gather(-1, labels[..., None])[..., 0]
        assert (near.amax(-1) - mine <= size * rounding(2 * points.shape[2])).all()
        moved += int((labels != near.argmax(-1)).sum())
        worst = (mine - lengths / 2).sort(dim=-1, stable=True).indices[:, :count, None]
        seeds = points.gather(1, worst.expand(-1, -1, points.shape[2]))
        centroids = updated(sum_grid(points), labels, seeds, centroids, summary.cosine)
    assert moved <= 1  # ties that fall the other way


@pytest.mark.parametrize("case", [CASES[1], CASES[7]])
def test_bits_do_not_depend_on_company_order_layers_or_places(case: tuple) -> None:
    summary, heads, dim, _, dtype = case
    summary, size = replace(summary, iterations=2), summary.segment_size
    layers = [bunches(6 * size, heads, dim, dtype, seed).to(DEVICE) for seed in range(2)]
    pages = torch.randperm(6 * size // 16).view(3, -1)
    table = (pages[..., None] * 16 + torch.arange(16)).flatten(1).int().to(DEVICE)
    jobs = torch.tensor([[0, 1, 4], [2, 0, 1], [1, 0, -1], [0, 0, 2], [1, 1, 0]]).int().to(DEVICE)
    pointers = torch.tensor([layer.data_ptr() for layer in layers], device=DEVICE)
    shape = (2, 6, heads, summary.subspaces)

    def run(jobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.full((*shape, size), 255, dtype=torch.uint8, device=DEVICE)
        width = dim // summary.subspaces
        books = layers[0].new_full((*shape, summary.codes, width), torch.nan)
        index_segments(summary, layers[0], pointers, table, jobs, codes, books, 16)
        return codes.cpu(), books.cpu()

    codes, books = run(jobs)
    assert (codes[:, [3, 5]] == 255).all() and books[:, [3, 5]].isnan().all()
    again = run(jobs.flip(0).contiguous())
    assert torch.equal(codes, again[0]) and torch.equal(books.nan_to_num(7), again[1].nan_to_num(7))
    for row, nth, record in jobs[[0, 3]].tolist():
        alone = run(torch.tensor([[row, nth, record]]).int().to(DEVICE))
        assert torch.equal(codes[:, record], alone[0][:, record])
        assert torch.equal(books[:, record], alone[1][:, record])
        tokens = table[row, nth * size : (nth + 1) * size].long()
        one = built(summary, layers[1][tokens].cpu(), 16 * (nth == 0))
        assert torch.equal(codes[1, record], one.codes[0])
        assert torch.equal(books[1, record], one.codebooks[0])


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("summary", [clusters(64, 4), products(64, 2, 4)])
def test_keys_that_are_not_finite_count_as_zero(summary: CodeSummary, dtype: torch.dtype) -> None:
    summary, keys = replace(summary, iterations=3), bunches(64, 1, 96, dtype)
    bad = torch.rand(keys.shape, generator=torch.Generator().manual_seed(5))
    zeroed = keys.masked_fill(bad < 0.02, 0)
    keys[bad < 0.02], keys[bad < 0.015], keys[bad < 0.01] = -torch.inf, torch.inf, torch.nan
    got, want = built(summary, keys), built(summary, zeroed)
    assert torch.equal(got.codes, want.codes) and torch.equal(got.codebooks, want.codebooks)


@pytest.mark.parametrize("value", [0.0, 1.0, 3e4])
def test_equal_keys_are_split_by_capacity_or_share_a_code(value: float) -> None:
    summary, keys = clusters(128, 8), torch.full((128, 1, 64), value)
    index = built(summary, keys)
    assert torch.equal(index.codes[0], summary.build(keys, 0)[0])
    assert torch.bincount(index.codes.flatten().long()).max() <= summary.capacity
    assert torch.equal(index.codebooks[0, 0, 0][index.codes.flatten().long()], keys[:, 0])
    index = built(replace(products(128, 2, 3), iterations=3), keys)
    assert (index.codes == index.codes[..., :1]).all()
    assert (index.codebooks[0, 0, 0, 0] == value).all()


def test_quiet_keys_have_a_cluster_of_their_own_and_large_ones_are_split() -> None:
    summary = clusters(128, 8)
    keys = bunches(128, 2, 64, BF16) * 0.01 + 2 * bunches(1, 2, 64, BF16)
    keys[3::9] *= 0.002
    index = built(summary, keys, 16)
    want = summary.build(keys, 16)[0]
    quiet_code = index.codes[0, :, 0, 21]
    assert torch.equal(index.codes[0, :, :, 21::9], want[:, :, 21::9])
    for head in range(2):
        counts = torch.bincount(index.codes[0, head, 0, 16:].long(), minlength=summary.codes)
        assert counts.max() <= summary.capacity
        assert (index.codes[0, head, 0, 21::9] == quiet_code[head]).all()


def test_more_codes_than_tokens_give_every_key_its_own() -> None:
    keys = bunches(64, 1, 16, FP32)
    index = built(replace(products(64, 2, 7), iterations=2), keys)
    far = distances(keys, index.codes[0], index.codebooks[0], cosine=False)
    assert own(far, index.codes[0]).max() < 1e-9


def test_keys_are_encoded_by_what_is_stored() -> None:
    summary = products(64, 16, 3)
    keys = (100 + 2 * torch.randn(64, 1, 64)).bfloat16()  # stored in steps of a half
    index = built(summary, keys)
    far = distances(keys, index.codes[0], index.codebooks[0], cosine=False)
    size = 4 * float(keys.double().unflatten(-1, (16, 4)).square().sum(-1).max())
    assert (own(far, index.codes[0]) - far.amin(-1)).max() <= size * rounding(4)


def test_very_large_and_very_small_keys_keep_their_codes() -> None:
    for summary in (clusters(64, 4), products(64, 2, 3)):
        summary = replace(summary, iterations=3)
        keys = bunches(64, 1, 64, BF16)
        codes = built(summary, keys).codes
        for power in (2.0**100, 2.0**-100):
            assert torch.equal(built(summary, keys * power).codes, codes)


def test_sets_that_the_kernel_is_told_of() -> None:
    told = constants_of(clusters(512, 16), 128, 2, Shapes())
    assert (told["FITTED"], told["APART"], told["CAPACITY"]) == (23, True, 64)
    assert constants_of(products(512, 4, 4), 128, 4, Shapes())["SPLIT"] is False


def test_no_segment_writes_nothing() -> None:
    keys, none = bunches(64, 1, 64, FP32), torch.empty(0, dtype=torch.int64)
    index = indexed(clusters(64, 4), keys, none.view(0, 64), none, none, 1)
    assert index.codebooks.isnan().all()
