"""What a step knows before its first layer: plans, tables, new pages, and a row's independence."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from sgl_sparsekv.kernels.triton import fused as fused_module
from sgl_sparsekv.kernels.triton import load
from sgl_sparsekv.kernels.triton.spec import EXACT, MIN_MAX, NOTHING, REACH, RESIDUALS
from sgl_sparsekv.kernels.triton.step import plan_row
from triton_kit import DEVICE
from triton_scene import POISON, Request, Step, make_scene

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.geometry import Geometry, ceil_div
from sgl_sparsekv.selection.policy import RowOptions, plan_rows
from sgl_sparsekv.types import Reduction, StepShape

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
BLOCK = 16
"""Units that one program lists where only the plan is looked at."""


def random_options(rng: np.random.Generator, unit: int) -> tuple[list[float], float, int, int]:
    """Budget and least budget, ratio, sink and window of one request that the options allow."""
    sink, window = (
        int(rng.choice([0, 1, 16, unit, unit + 1, rng.integers(1, 5000)])) for _ in "ab"
    )
    least = (ceil_div(sink, unit) + ceil_div(window, unit) + 1) * unit
    if rng.random() < 0.5:
        return [least + int(rng.integers(0, 4 * unit)), least], 0.0, sink, window
    ratio = float(rng.choice([1.0, 0.1, 0.3, 1 / 3, 2.0**-20, rng.random()]))
    return [0, least], max(ratio, 1e-9), sink, window


def no_slots(unit: int) -> torch.Tensor:
    """One row of `req_to_token`, page 0 all along: as wide as one program lists."""
    return torch.zeros(1, BLOCK * unit, dtype=torch.int32, device=DEVICE)


@triton.jit
def plan_many(lengths, places, options, ratios, plan, rows, stride, UNIT: tl.constexpr):
    """`plan_row` of 1024 rows at once: one row per program would take minutes to interpret."""
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    found = plan_row(
        tl.load(lengths + i).to(tl.int32), options, ratios, tl.load(places + i), stride, UNIT
    )
    for index in tl.static_range(10):
        tl.store(plan + index * rows + i, found[index])


@pytest.mark.parametrize("unit,rows", [(16, 6144), (32, 2048), (64, 2048)])
def test_the_planner_counts_as_the_device(
    unit: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 random rows: nine numbers each, and which of them read everything.

    All through the function that plans a row, the first 500 through `begin` as well.
    """
    monkeypatch.setattr(fused_module, "BEGIN_UNITS", BLOCK)  # of the table, not looked at here
    rng = np.random.default_rng(unit)
    shape = StepShape(
        rows, rows, BLOCK, 1, 8, 1, 1, 64, 64, unit, 64, torch.bfloat16, DEVICE,
        frozenset({"position"}), Reduction.MAX_SOFTMAX,
    )  # fmt: skip
    fused, nobody = load().fused(shape), no_slots(unit)
    lengths = rng.integers(1, 2 ** rng.integers(1, 21, rows))
    drawn = [random_options(rng, unit) for _ in range(rows)]
    dense = rng.integers(0, 40, rows)
    formulas = rng.choice([*range(EXACT + 1), RESIDUALS], rows)
    estimates = rng.integers(0, 2, rows)
    finer = rng.integers(0, unit.bit_length(), rows)
    table = [
        [f, *d[0], d[2], d[3], n, fine, estimated]
        for f, d, n, fine, estimated in zip(formulas, drawn, dense, finer, estimates, strict=True)
    ]
    ratios = np.array([d[1] for d in drawn])
    places = rng.permutation(rows)
    fused.buffers.options[places] = torch.tensor(np.array(table), dtype=torch.int32, device=DEVICE)
    fused.buffers.ratios[places] = torch.tensor(ratios, device=DEVICE)
    where, tokens = (torch.tensor(x, device=DEVICE) for x in (places, lengths))
    stamps = torch.zeros(8, dtype=torch.bool, device=DEVICE)
    fused.begin(stamps, where[:500], tokens[:500], nobody.expand(rows, -1))
    every = torch.zeros(10, rows, dtype=torch.int32, device=DEVICE)
    table = fused.buffers.options
    plan_many[(rows // 1024,)](
        tokens, where, table, fused.buffers.ratios, every, rows, table.stride(0), UNIT=unit
    )
    budgets = [
        max(d[0][1], int(np.floor(d[1] * n))) if d[1] else d[0][0]
        for d, n in zip(drawn, lengths.tolist(), strict=True)
    ]
    options = RowOptions(np.array(budgets), *(np.array([d[i] for d in drawn]) for i in (2, 3)))
    plan = plan_rows(lengths, options, Geometry(64, unit), unit >> finer)
    got, begun = every.cpu().numpy(), fused.buffers.plan[:, :500].cpu().numpy()
    whole = plan.dense | (formulas == NOTHING)
    opens = ~whole & ((formulas == RESIDUALS) | (estimates > 0))
    want = [
        np.where(plan.dense, NOTHING, formulas), plan.begin, plan.end, plan.num_units, plan.counts,
        plan.tail, dense, finer, np.where(opens, plan.counts * (unit >> finer) * REACH, 0),
        np.where(whole, 0, estimates),
    ]  # fmt: skip
    for index, expected in enumerate(want):
        assert np.array_equal(got[index], expected), f"field {index} of the plan"
        assert np.array_equal(begun[index], expected[:500]), f"field {index} of the plan"
    assert 0 < plan.dense.sum() < rows


def test_a_ratio_is_rounded_as_options_round_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.3 of a context is the host's double, not a float32."""
    monkeypatch.setattr(fused_module, "BEGIN_UNITS", BLOCK)
    lengths = [*range(1, 1500, 7), 10**6]
    shape = StepShape(
        len(lengths), 1, BLOCK, 1, 8, 1, 1, 64, 64, 16, 64, torch.bfloat16, DEVICE,
        frozenset({"position"}), Reduction.MAX_SOFTMAX,
    )  # fmt: skip
    fused, nobody = load().fused(shape), no_slots(16)
    for ratio in (0.1, 0.3, 0.7):
        request = RequestOptions(budget=ratio, sink=0, window=0)
        row = [MIN_MAX, 0, request.minimum_budget, 0, 0, 0, 0, 0]
        fused.buffers.options[0] = torch.tensor(row, dtype=torch.int32, device=DEVICE)
        fused.buffers.ratios[0] = ratio
        fused.begin(
            torch.zeros(8, dtype=torch.bool, device=DEVICE),
            torch.zeros(len(lengths), dtype=torch.int64, device=DEVICE),
            torch.tensor(lengths, dtype=torch.int32, device=DEVICE), nobody,
        )  # fmt: skip
        options = RowOptions.resolve([request] * len(lengths), np.array(lengths))
        counts = plan_rows(np.array(lengths), options, Geometry(64)).counts
        assert np.array_equal(fused.buffers.plan[4].cpu().numpy(), counts)


def test_the_table_and_the_list_of_new_units() -> None:
    """Longer rows than one program lists; stamped, partial and page 0's units are not listed."""
    scene = make_scene([Request(8700), Request(15), Request(16), Request(64)], heads=1)
    full = scene.full_units()
    scene.sealed[full[::3]] = True
    scene.req_to_token[scene.places[3], :64] = torch.arange(64, dtype=torch.int32)  # page 0
    step = Step.of(scene)
    step.fused.buffers.table.fill_(POISON)
    step.begin()
    held, width = step.fused.buffers, scene.batch.table.shape[1]
    table, marked = held.units[:, :width].cpu(), held.table[:, :width].cpu() < 0
    assert table[3, :4].tolist() == [0, 1, 2, 3] and not marked[3, :4].any()
    for row, length in enumerate((8700, 15, 16)):
        units = table[row, : -(-length // 16)]
        assert torch.equal(units, scene.batch.table[row, : len(units)])
        stamped = scene.sealed[units.long()]
        assert torch.equal(marked[row, : length // 16], ~stamped[: length // 16])
        assert not marked[row, length // 16 : len(units)].any(), "the newest unit is not full"
    listed = step.fused.buffers.pending[: int(step.fused.buffers.pending_count)].tolist()
    new = full[:-4][~scene.sealed[full[:-4]]].tolist()
    assert sorted(listed) == sorted(new) and len(set(listed)) == len(listed) > 300


@pytest.mark.parametrize("unit,page", [(16, 64), (16, 16), (32, 64), (64, 64)])
def test_forget_clears_what_is_written(unit: int, page: int) -> None:
    """Units of any slots in any order, in the middle of a page too, and whole pages that start."""
    scene = make_scene([Request(2000)], heads=1, unit=unit, page=page)
    step = Step.of(scene)
    step.sealed.fill_(True)
    first = torch.arange(0, 2048, 5 * page, device=DEVICE)
    slots = torch.cat((first, torch.randint(2048, (30,), device=DEVICE)))
    slots = slots[torch.randperm(len(slots), device=DEVICE)]
    step.fused.forget(step.sealed, slots)
    want = torch.ones(len(step.sealed), dtype=torch.bool)
    pages = [int(s) // page for s in slots if int(s) % page == 0 and int(s) >= page]
    for at in pages:
        want[at * (page // unit) : (at + 1) * (page // unit)] = False
    for slot in slots.tolist():
        want[slot // unit] &= slot < page
    assert pages and want[page // unit :].any() and torch.equal(step.sealed.cpu(), want)
    step.sealed.fill_(True)
    step.fused.forget(step.sealed, torch.arange(page, device=DEVICE))
    step.fused.forget(step.sealed, slots[:0])
    assert step.sealed.all(), "page 0 has no owner"


def test_a_row_gives_the_same_bits_alone_and_among_17() -> None:
    """Output and table; rows of one to many splits, of every formula."""
    names = ["min_max", "mean_std", "exact", "position", "nothing"]
    lengths = [1, 16, 17, 32, 33, 255, 256, 257, 272, 273, 65, 130, 500, 100, 210, 90, 40]
    requests = [
        Request(length, names[i % len(names)], 112, 16, 30) for i, length in enumerate(lengths)
    ]
    scene = make_scene(requests, heads=1, dim=64)
    full = scene.full_units()
    scene.seal(full[::2])
    together = Step.of(scene)
    together.begin()
    out = together.decode()
    selected, plan = together.fused.buffers.selected.clone(), scene.plan()
    step = Step.of(scene)
    for row in (0, 1, 5, 7, 9, 11, 12, 16):
        step.begin([row])
        alone = step.decode(rows=[row])
        assert torch.equal(alone[0], out[row])
        if not plan.dense[row] and requests[row].formula != "nothing":
            count = int(plan.counts[row])
            assert torch.equal(step.fused.buffers.selected[0, :, :count], selected[row, :, :count])
        step.end()
        step.sealed.copy_(scene.sealed)
