"""Attend through stock paged kernels: what a route passes, read by an emulator, is attention."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import EPS, Batch, make_batch
from helpers import paged_emulator
from sgl_sparsekv.kernels.flashinfer import buffers, choose, fa2, layout
from sgl_sparsekv.kernels.flashinfer.layout import encode, head_pages

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.routes import ROUTES, PagedAttend, load_route
from sgl_sparsekv.types import AttendShape

REFERENCE = load_ops("reference")
DOCS = Path(__file__).parents[2] / "docs" / "attend_routes.md"
HOPPER = (9, 0)
NOWHERE = 2**31 - 1
"""Page id of list entries that no kernel may follow."""
SHORT = (1, 15, 16, 17, 511)
LONG = 4097
PLANS = 10_000
SHAPE = AttendShape(2, 2, 4, 128, 128, 16, 9, torch.bfloat16, torch.device("cpu"), True)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled kernels replaced; buffers of the routes are not shared between tests."""
    paged_emulator.install(monkeypatch)
    monkeypatch.setattr(fa2, "multiprocessors", lambda device: paged_emulator.PROCESSORS)
    monkeypatch.setattr(fa2, "SHARED_WORKSPACE", 1 << 20)
    yield
    buffers.workspace.cache_clear()
    buffers._pages.clear()


@dataclass(frozen=True)
class Step:
    """One decode step of one layer: a batch, and for each head its own units.

    Attributes:
        batch: rows and pool.
        shape: what the route is made for.
        table: int32 `[rows, H, n]`.
        counts: units of each row.
    """

    batch: Batch
    shape: AttendShape
    table: torch.Tensor
    counts: np.ndarray

    @property
    def tails(self) -> np.ndarray:
        """Tokens of each row's last unit."""
        return self.batch.tails.numpy().astype(np.int64)


def make_step(batch: Batch, seed: int = 0, graph: bool = True) -> Step:
    """Every head attends to its own subset of the row's units, the last always among them."""
    rng = torch.Generator().manual_seed(seed)
    rows, heads, group, dim = batch.q.shape
    units = batch.num_units
    counts = (torch.rand(rows, generator=rng) * units).int() + 1
    table = torch.full((rows, heads, int(counts.max())), -(10**6), dtype=torch.int32)
    for row, head in itertools.product(range(rows), range(heads)):
        count, last = int(counts[row]), int(units[row]) - 1
        others = torch.randperm(last, generator=rng)[: count - 1].sort().values
        logical = torch.cat([others, torch.tensor([last])])
        table[row, head, :count] = batch.table[row, logical]
    shape = AttendShape(
        rows, heads, group, dim, batch.values.shape[-1], batch.unit_size, int(units.max()),
        batch.q.dtype, batch.q.device, graph,
    )  # fmt: skip
    return Step(batch, shape, table, counts.numpy().astype(np.int64))


def write_pages(attend: PagedAttend, step: Step) -> None:
    """What a selection kernel does before every run."""
    pages = layout.encode(step.table, step.shape.heads, step.shape.unit_size)
    attend.pages.fill_(NOWHERE)
    for row, head in itertools.product(range(step.shape.rows), range(step.shape.heads)):
        count, start = int(step.counts[row]), int(attend.offsets[row, head])
        attend.pages[start : start + count] = pages[row, head, :count]


def check_run(attend: PagedAttend, step: Step, gives_lse: bool = True) -> None:
    """A planned attend gives what the reference gives."""
    batch, scale = step.batch, 0.7 / step.shape.head_dim**0.5
    write_pages(attend, step)
    out, lse = attend.run(batch.q, batch.keys, batch.values, scale)
    counts = torch.from_numpy(step.counts).int()
    wanted, wanted_lse = REFERENCE.attend(
        batch.q, batch.keys, batch.values, step.table, counts, batch.tails, scale, batch.unit_size
    )
    assert out.shape == wanted.shape and out.dtype == batch.q.dtype
    error = (out.double() - wanted.double()).abs()
    assert (error <= 2.02 * EPS[batch.q.dtype] * wanted.double().abs() + 1e-5).all()
    assert (lse is not None) == gives_lse
    if lse is not None:
        torch.testing.assert_close(lse, wanted_lse, rtol=1e-5, atol=1e-5)
        assert lse.dtype == torch.float32 and lse.shape == batch.q.shape[:3]
    again, nothing = attend.run(batch.q, batch.keys, batch.values, scale, lse=False)
    assert nothing is None and torch.equal(again, out)


def check_route(name: str, step: Step) -> None:
    """Choose, create, plan, run."""
    attend = choose(step.shape, HOPPER, name).create(step.shape)
    attend.plan(step.counts, step.tails)
    check_run(attend, step, name != "xqa")


def contexts(seed: int) -> Iterator[list[int]]:
    """Rows 1, 3 and 17; each short context occurs, alone and among others."""
    mixed = np.random.default_rng(seed).choice(SHORT, size=17).tolist()
    yield [SHORT[seed % len(SHORT)]]
    yield [17, 511, 1]
    yield mixed


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("dim", (64, 96, 128, 256))
@pytest.mark.parametrize("unit", (16, 32, 64))
def test_what_a_route_passes_is_attention(name: str, dim: int, unit: int) -> None:
    """All rows, contexts, heads, groups and element types; all else in the pool is NaN."""
    if name == "fa2" and dim == 96:
        pytest.skip("refused: test_wrong_use_gives_one_sentence")
    shapes = list(itertools.product((1, 2, 8), (1, 4, 7, 8), (torch.bfloat16, torch.float16)))
    turn = dim // 32 + unit // 16
    for number, (heads, group, dtype) in enumerate(shapes[turn % 4 :: 4]):
        for lengths in contexts(number):
            if len(lengths) == 17 and heads == 8 and number % 3:
                continue
            batch = make_batch(lengths, heads, group, dim, dtype, unit, seed=number)
            check_route(name, make_step(batch, number, graph=number % 2 == 0))


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("unit", (16, 64))
def test_long_rows_among_short(name: str, unit: int) -> None:
    """4097 tokens: more than one split, one token in the last unit."""
    for lengths, heads, group, dim in (([LONG], 2, 7, 64), ([1, LONG, 16], 8, 4, 128)):
        batch = make_batch(lengths, heads, group, dim, torch.bfloat16, unit)
        check_route(name, make_step(batch))


def test_v_of_another_head_dim() -> None:
    """FA3 alone takes it; K and V share their page ids."""
    batch = make_batch([33, 511], 2, 4, 192, torch.bfloat16)
    batch = replace(batch, values=batch.values[..., :128].contiguous())
    check_route("fa3", make_step(batch))


@pytest.mark.parametrize("name", ROUTES)
def test_one_plan_serves_every_layer_and_the_next_step_keeps_its_buffers(name: str) -> None:
    """Layers rewrite pages only; a second plan moves no buffer that a graph has captured."""
    lengths = ([40, 511, 16], [41, 300, 17])
    steps = [
        make_step(make_batch(n, 2, 4, 64, torch.bfloat16), seed) for seed, n in enumerate(lengths)
    ]
    shape = replace(steps[0].shape, max_units=32)
    attend = load_route(name).create(shape)
    places = attend.pages.data_ptr(), attend.offsets.data_ptr()
    for step in steps:
        step = replace(step, shape=shape)
        attend.plan(step.counts, step.tails)
        for _ in range(3):
            table = torch.full_like(step.table, -1)
            for row, count in enumerate(step.counts):
                source = step.batch.table[row, : int(step.batch.num_units[row])]
                for head in range(shape.heads):
                    order = torch.randperm(len(source) - 1)[: int(count) - 1]
                    table[row, head, : int(count)] = torch.cat([source[order], source[-1:]])
            check_run(attend, replace(step, table=table), name != "xqa")
        assert places == (attend.pages.data_ptr(), attend.offsets.data_ptr())


@pytest.mark.parametrize("name", ROUTES)
def test_shapes_share_one_page_buffer(name: str) -> None:
    """The smaller takes the beginning of the larger's; each run after its own pages is right."""
    steps = [make_step(make_batch(n, 2, 4, 64, torch.bfloat16)) for n in ([511, 40], [300])]
    attends = [load_route(name).create(step.shape) for step in steps]
    assert attends[0].pages.data_ptr() == attends[1].pages.data_ptr()
    for attend, step in zip(attends, steps, strict=True):
        attend.plan(step.counts, step.tails)
    for attend, step in [*zip(attends, steps, strict=True)] * 2:
        check_run(attend, step, name != "xqa")


def test_planned_numbers_are_those_of_the_counts() -> None:
    """indptr, last_page_len, lengths and offsets of random batches, from their definitions."""
    rng = np.random.default_rng(7)
    made = {
        (rows, heads, unit): [
            load_route(name).create(
                replace(SHAPE, rows=rows, heads=heads, unit_size=unit, max_units=300)
            )
            for name in ("fa2", "fa3", "xqa")
        ]
        for rows, heads, unit in ((1, 1, 16), (3, 2, 64), (5, 8, 32), (17, 1, 16))
    }
    for number in range(PLANS):
        (rows, heads, unit), attends = list(made.items())[number % len(made)]
        counts = rng.integers(1, 301, rows)
        tails = rng.integers(1, unit + 1, rows)
        units = [int(c) for c in counts for _ in range(heads)]
        starts = list(itertools.accumulate(units, initial=0))
        tokens = [
            (int(c) - 1) * unit + int(t) for c, t in zip(counts, tails, strict=True)
        ]  # fmt: skip
        for attend in attends[number % 3 : number % 3 + 1] if number >= 300 else attends:
            attend.plan(counts, tails)
            if isinstance(attend, fa2.Fa2Attend):
                wrapper = attend._wrapper
                assert wrapper._paged_kv_indptr_buf.tolist() == starts
                assert wrapper._paged_kv_indptr_buf.data_ptr() == attend.offsets.data_ptr()
                last = [int(t) for t in tails for _ in range(heads)]
                assert wrapper._paged_kv_last_page_len_buf.tolist() == last
                assert attend.offsets.flatten().tolist() == starts[:-1]
            else:
                lists = attend._lists
                assert lists.lengths.tolist() == [n for n in tokens for _ in range(heads)]
                assert lists.offsets.flatten().tolist() == [300 * i for i in range(rows * heads)]


@pytest.mark.parametrize("name", ROUTES)
def test_a_plan_refuses_numbers_outside_its_buffers(name: str) -> None:
    """Kernels follow them without looking."""
    attend = load_route(name).create(SHAPE)
    good = np.array([1, 9]), np.array([16, 1])
    attend.plan(*good)
    for counts, tails in (([0, 1], [1, 1]), ([1, 10], [1, 1]), ([1, 1], [0, 1]), ([1, 1], [1, 17])):
        with pytest.raises(ValueError, match="must be in"):
            attend.plan(np.array(counts), np.array(tails))
    with pytest.raises(ValueError, match="must be \\[2\\]"):
        attend.plan(good[0][:1], good[1])


def shifted_ids(units: torch.Tensor, heads: int, unit_size: int) -> torch.Tensor:
    """One page too far."""
    return encode(units, heads, unit_size) + 1


def mixed_heads(units: torch.Tensor, heads: int, unit_size: int) -> torch.Tensor:
    """The list of head 0 for every head."""
    return encode(units, heads, unit_size)[..., :1, :].expand(*units.shape)


def head_major(units: torch.Tensor, heads: int, unit_size: int) -> torch.Tensor:
    """Ids of a pool laid out `[page, H, unit_size, D]`."""
    return (encode(units, heads, unit_size) // (unit_size * heads)) * heads + torch.arange(
        heads, dtype=torch.int32
    )[:, None]


def with_strides(page: int, entry: int) -> object:
    """`head_pages` whose strides are off by some elements."""

    def view(pool: torch.Tensor, unit_size: int) -> torch.Tensor:
        good = head_pages(pool, unit_size)
        a, b, c, d = good.stride()
        return good[: len(good) // 2].as_strided(
            (len(good) // 2, *good.shape[1:]), (a + page, b + entry, c, d)
        )

    return view


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize(
    "mutant",
    [
        ("encode", shifted_ids),
        ("encode", mixed_heads),
        ("encode", head_major),
        ("head_pages", with_strides(64, 0)),
        ("head_pages", with_strides(0, 64)),
        ("head_pages", with_strides(0, -64)),
    ],
)
def test_a_wrong_address_is_noticed(
    name: str, mutant: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks above can fail."""
    step = make_step(make_batch([40, 511], 2, 4, 64, torch.bfloat16))
    module = layout if mutant[0] == "encode" else sys.modules[fa2.__name__.replace("fa2", name)]
    monkeypatch.setattr(module, *mutant)
    with pytest.raises((AssertionError, IndexError)):
        check_route(name, step)


def test_the_view_covers_the_pool_and_no_more() -> None:
    """Its ids reach every unit of every head; its last element is the pool's last."""
    for heads, dim, unit in itertools.product((1, 2, 8), (64, 96), (16, 32)):
        slots = 3 * unit
        whole = torch.arange(2 * slots * heads * dim).view(2, slots, heads, dim)
        pool = whole[1]
        view = head_pages(pool, unit)
        assert view.data_ptr() == pool.data_ptr()
        assert int(view[-1, -1, 0, -1]) == int(whole[-1, -1, -1, -1])
        units = torch.arange(3, dtype=torch.int32).expand(heads, 3)
        ids = encode(units, heads, unit)
        assert ids.dtype == torch.int32 and int(ids.max()) == len(view) - 1
        assert torch.equal(
            view[ids.long()][:, :, :, 0], pool.view(3, unit, heads, dim).permute(2, 0, 1, 3)
        )
        assert torch.equal(encode(units[:1], heads, unit), ids)


def test_pools_that_cannot_be_viewed_are_refused() -> None:
    """Other strides, too few slots, more rows than int32 numbers."""
    pool = torch.zeros(64, 2, 64)
    for wrong, rule in (
        (pool.transpose(0, 1), "contiguous"),
        (pool[:8], "at least 16"),
        (torch.empty(2**28, 8, 8, device="meta"), "rows"),
    ):
        with pytest.raises(ValueError, match=rule):
            head_pages(wrong, 16)
