"""`attend`: attention over units that are given, joined over splits."""

import torch

from bench.gpu.gate import exact_attention, poison_unselected
from bench.gpu.harvest.checks.inputs import Setting, each, number, prepare, put, rows_of
from bench.gpu.harvest.differ import near, same
from bench.gpu.kernels import Run
from bench.gpu.step import Step
from sgl_sparsekv.selection.policy import RowPlan

AXES = ("query", "channel")


def check(run: Run) -> None:
    """As a step launches it, over a selection and over everything; then the op."""
    each(run, "attend in a step", in_step)
    each(run, "attend in a dense layer", dense)
    each(run, "attend", alone)


def in_step(run: Run, setting: Setting) -> str:
    """Random units of every head; K and V of all others are NaN.

    Raises:
        AssertionError: a channel errs, or a ticket is not back at 0.
    """
    step = prepare(run, setting)
    plan = put(step)
    choose(step, plan)
    poison_unselected(step, plan)
    return attended(step, setting, plan)


def dense(run: Run, setting: Setting) -> str:
    """A layer below the request's first sparse one reads every unit of the table.

    Raises:
        AssertionError: a channel errs, or a ticket is not back at 0.
    """
    step = prepare(run, setting)
    plan = put(step, dense_layers=1)
    return attended(step, setting, plan, everything=True)


def alone(run: Run, setting: Setting) -> str:
    """The op over the same kind of selection.

    Raises:
        AssertionError: a channel errs.
    """
    step = prepare(run, setting)
    plan, scene, held = put(step), step.scene, step.fused.buffers
    choose(step, plan)
    poison_unselected(step, plan)
    table = held.selected[: setting.shape.batch, :, : int(plan.counts.max())].contiguous()
    out, _ = run.ops.attend(
        scene.q, *scene.kv[0], table, number(step, plan.counts), number(step, plan.tail),
        scene.extents.scale, setting.unit,
    )  # fmt: skip
    return compare(step, setting, plan, out, everything=False)


def choose(step: Step, plan: RowPlan) -> None:
    """Sinks, window and random candidates of each row and head, as `select` leaves them."""
    rng = torch.Generator().manual_seed(step.unit)
    units = step.scene.units(step.unit)
    for row in range(step.scene.shape.batch):
        begin, end, total = (int(x[row]) for x in (plan.begin, plan.end, plan.num_units))
        rank = torch.rand(step.scene.extents.heads, total, generator=rng)
        rank[:, :begin] = rank[:, end:] = 2.0
        count = int(plan.counts[row])
        chosen = rank.topk(count).indices.sort().values.to(units.device)
        step.fused.buffers.selected[row, :, :count] = units[row][chosen].int()


def attended(step: Step, setting: Setting, plan: RowPlan, everything: bool = False) -> str:
    """Launch it over poisoned results.

    Raises:
        AssertionError: a channel errs, or a ticket is not back at 0.
    """
    held = step.fused.buffers
    held.out.fill_(torch.nan)
    out = step.attend(0)
    same("tickets", held.tickets, torch.zeros_like(held.tickets), ("row", "head"))
    return compare(step, setting, plan, out, everything)


def compare(
    step: Step, setting: Setting, plan: RowPlan, out: torch.Tensor, everything: bool
) -> str:
    """Some rows and all heads against float64.

    Raises:
        AssertionError: a channel errs.
    """
    offsets = torch.arange(setting.unit, device=out.device)
    for row in rows_of(setting):
        count = int((plan.num_units if everything else plan.counts)[row])
        read = (count - 1) * setting.unit + int(plan.tail[row])
        for head in range(setting.extents.heads):
            listed = step.fused.buffers.selected[row, head, :count].long()
            units = step.scene.units(setting.unit)[row, :count] if everything else listed
            slots = (units[:, None] * setting.unit + offsets).flatten()[:read]
            want, band = exact_attention(step.scene, row, head, slots)
            near(f"row {row}, head {head}", out[row, head], want, band, AXES)
    return f"{len(rows_of(setting))} of {setting.shape.batch} rows"
