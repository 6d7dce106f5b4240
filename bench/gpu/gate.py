"""No time without a green gate: the launches of a layer against the reference, at the same shape.

All that must not be read is NaN: what no request owns, metadata of sinks, window and the newest
unit, and in a second run every key and value that was not selected.
"""

import numpy as np
import torch
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.shapes import Extents, Scene, Shape, make_scene
from bench.gpu.step import Step, make_step
from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection.policy import RowOptions, RowPlan, plan_rows
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Candidates, Reduction

EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place of 1."""
SLACK = 2.0**-9
"""Scores are float32 sums of exact products near 100; they may differ in their order."""
ROWS = 3
"""Rows that are compared with the reference."""


def check(holds: object, what: str) -> None:
    """Raise unless something holds, also under `python -O`.

    Raises:
        AssertionError: says what does not.
    """
    if not holds:
        raise AssertionError(what)


def gate(
    extents: Extents, shape: Shape, unit: int, device: torch.device,
    kernels: TritonOps | None = None,
) -> str:  # fmt: skip
    """Judge one layer of a shape by some kernels, None: our own; gives what was compared.

    Raises:
        AssertionError: it differs.
    """
    scene = make_scene(extents, shape, device, layers=1)
    step = make_step(scene, unit, copies=1, watched=True, kernels=kernels)
    plan = host_plan(scene, unit)
    for edge in (slice(0, int(plan.begin[0])), slice(int(plan.end[0]), None)):
        step.fields[0][scene.units(unit)[:, edge].flatten()] = torch.nan
    step.begin()
    check_plan(step, plan)
    out = step.decode(0).clone()
    check(not out.isnan().any(), "something that is NaN was read")
    check_summary(step)
    check(not step.fused.buffers.tickets.any(), "tickets are not back at 0")
    rows = sorted({0, shape.batch // 2, shape.batch - 1})[:ROWS]
    for row in rows:
        check_row(step, plan, row, out[row])
    poison_unselected(step, plan)
    step.begin()
    check(torch.equal(step.decode(0), out), "a key or value that was not selected was read")
    return f"{len(rows)} of {shape.batch} rows against the reference, NaN elsewhere"


def host_plan(scene: Scene, unit: int) -> RowPlan:
    """The plan of every row as the host makes it."""
    one = scene.extents
    lengths = scene.lengths.cpu().numpy().astype(np.int64)
    columns = (np.full(len(lengths), n, dtype=np.int64) for n in (one.budget, one.sink, one.window))
    return plan_rows(lengths, RowOptions(*columns), Geometry(one.page, unit))


def check_plan(step: Step, plan: RowPlan) -> None:
    """The device plans as the host does, and lists the units of every row."""
    rows = step.scene.shape.batch
    found = step.fused.buffers.plan[:, :rows].cpu().numpy()
    wanted = (plan.begin, plan.end, plan.num_units, plan.counts, plan.tail)
    for name, got, want in zip(
        ("begin", "end", "units", "count", "tail"), found[1:6], wanted, strict=True
    ):
        check((got == want).all(), f"plan: {name} is {got.tolist()}, the host's {want.tolist()}")
    table = step.fused.buffers.table[:rows, : int(plan.num_units.max())]
    check(torch.equal(table.long(), step.scene.units(step.unit)), "the table of units differs")


def check_summary(step: Step) -> None:
    """The newest unit of every row was summarised, to the bit."""
    units = step.scene.units(step.unit)[:, -1]
    want = torch.zeros_like(step.fields[0])
    load_ops("reference").summarise(Quest.summary, step.scene.kv[0][0], want, units)
    check(torch.equal(step.fields[0][units], want[units]), "fields of the newest unit differ")


def check_row(step: Step, plan: RowPlan, row: int, out: torch.Tensor) -> None:
    """What one row read, and what came of it."""
    scene, unit = step.scene, step.unit
    count, begin, end = (int(x[row]) for x in (plan.counts, plan.begin, plan.end))
    logical = step.fused.buffers.logical[row, :, :count].long()
    physical = scene.units(unit)[row][logical]
    check(torch.equal(step.fused.buffers.selected[row, :, :count].long(), physical), "selected")
    check((logical.diff() > 0).all(), "selected units do not ascend")
    spans = (torch.tensor([n], dtype=torch.int32, device=scene.device) for n in (begin, end))
    candidates = Candidates(scene.units(unit)[row : row + 1].int(), *spans)
    scores = load_ops("reference").score(
        Quest.summary, scene.q[row : row + 1], step.fields[0], candidates, scene.extents.scale,
        Reduction.MAX_SOFTMAX,
    )[0]  # fmt: skip
    total = int(plan.num_units[row])
    always = torch.ones(total, dtype=torch.bool, device=scene.device)
    always[begin:end] = False
    ranked = count - int(always.sum())
    for head in range(scene.extents.heads):
        kept = torch.zeros_like(always)
        kept[logical[head]] = True
        check(kept[always].all(), "a sink or window unit is missing")
        inside, known = kept[begin:end], scores[head, begin:end]
        threshold = known.sort(descending=True).values[ranked - 1]
        check(known[inside].min() >= threshold - SLACK, "a unit below the threshold was kept")
        if not inside.all():
            check(known[~inside].max() <= threshold + SLACK, "a better unit was left out")
        check_attention(scene, row, head, physical[head] * unit, unit, out[head])


def check_attention(
    scene: Scene, row: int, head: int, first: torch.Tensor, unit: int, out: torch.Tensor
) -> None:
    """One row and head against float64 attention over runs of slots that begin at `first`."""
    slots = (first[:, None] + torch.arange(unit, device=scene.device)).flatten()
    exact, band = exact_attention(scene, row, head, slots)
    error = (out.double() - exact).abs()
    check((error <= band).all(), f"attention errs by {float(error.max()):.3g}")


def exact_attention(
    scene: Scene, row: int, head: int, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one row and head over slots of the first layer, float64, and what it may err."""
    keys, values = (pool[slots, head].double() for pool in scene.kv[0])
    weights = (scene.q[row, head].double() @ keys.T * scene.extents.scale).softmax(-1)
    exact, eps = weights @ values, EPS[scene.extents.dtype]
    # Weights are rounded to the cache's type once, and so is the result (by Triton's interpreter
    # downwards, twice the error).
    return exact, 2 * eps * (weights @ values.abs()) + 2.02 * eps * exact.abs() + 1e-5


def poison_unselected(step: Step, plan: RowPlan) -> None:
    """NaN where no row selected a unit for a head, in K and V."""
    scene, held = step.scene, step.fused.buffers
    for head in range(scene.extents.heads):
        kept = torch.zeros(scene.slots // step.unit, dtype=torch.bool, device=scene.device)
        for row in range(scene.shape.batch):
            kept[held.selected[row, head, : int(plan.counts[row])].long()] = True
        for pool in scene.kv[0]:
            units = pool.unflatten(0, (-1, step.unit))[:, :, head]
            units.masked_fill_(~kept[:, None, None], torch.nan)
