"""`select`: which units are kept, from scores that are given."""

import torch

from bench.gpu.gate import SLACK
from bench.gpu.harvest.checks.inputs import (
    Setting,
    candidates,
    each,
    number,
    prepare,
    put,
    rows_of,
)
from bench.gpu.harvest.checks.score import reference_logits
from bench.gpu.harvest.checks.summaries import summarised
from bench.gpu.harvest.differ import holds, same
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from sgl_sparsekv.ops import load_ops

EQUALS = 7
"""Different scores, where ties are wanted."""


def check(run: Run, name: str = "select") -> None:
    """The op by scores with and without ties, then as a step launches it."""
    each(run, name, alone)
    each(run, f"{name} in a step", in_step)


def alone(run: Run, setting: Setting) -> str:
    """The reference's choice, in its order, to the last tie.

    Raises:
        AssertionError: a unit differs.
    """
    step = prepare(run, setting)
    plan = put(step)
    at, heads = candidates(step, plan), setting.extents.heads
    counts, totals = number(step, plan.counts), number(step, plan.num_units)
    rng = torch.Generator().manual_seed(setting.unit)
    random = torch.randn(setting.shape.batch, heads, at.unit_table.shape[1], generator=rng)
    hard = random.clone()
    hard[:, :, ::5], hard[:, :, 1::9], hard[:, :, 3::11] = torch.nan, torch.inf, -torch.inf
    for name, scores in (
        ("random scores", random),
        ("ties", (random * EQUALS).int().float()),
        ("NaN and infinities", hard),
    ):
        arguments = (scores.to(run.device), at, totals, counts)
        got, want = run.ops.select(*arguments), load_ops("reference").select(*arguments)
        same(f"{name}: units", got.logical, want.logical, ("row", "head", "place"))
        same(f"{name}: physical units", got.physical, want.physical, ("row", "head", "place"))
    return "random scores, ties, NaN and infinities"


def in_step(run: Run, setting: Setting) -> str:
    """From the reference's logits: sinks, window and the best, ascending.

    Raises:
        AssertionError: a unit differs.
        Skip: `score`, which normalises, gives nothing to select by.
    """
    step = prepare(run, setting)
    plan, held = put(step), step.fused.buffers
    written = summarised(step)
    step.score(0)
    highest = step.normaliser()
    if not highest.isfinite().all():
        raise Skip("score gives no finite sum: see its own check")
    logits = {row: reference_logits(step, written, row) for row in rows_of(setting)}
    for row, values in logits.items():
        held.logits[row, :, :, : values.shape[-1]] = values
    held.logical.fill_(-1)
    held.selected.fill_(-1)
    step.select(0)
    for row, values in logits.items():
        rank = (values.double() - highest[row, :, :, None]).amax(1)
        total, count = int(plan.num_units[row]), int(plan.counts[row])
        rank[:, : int(plan.begin[row])] = rank[:, int(plan.end[row]) : total] = torch.inf
        kept_best(row, held.logical[row, :, :count].long(), rank[:, :total], count)
        physical = step.scene.units(setting.unit)[row][held.logical[row, :, :count].long()]
        same(f"physical units of row {row}", held.selected[row, :, :count].long(), physical,
             ("head", "place"))  # fmt: skip
    return f"{len(logits)} of {setting.shape.batch} rows"


def kept_best(row: int, chosen: torch.Tensor, rank: torch.Tensor, count: int) -> None:
    """Units `[H, count]` ascend and are the best of `rank` `[H, U]`, near ties either way.

    Raises:
        AssertionError: one is not.
    """
    axes, inside = ("head", "place"), (chosen >= 0) & (chosen < rank.shape[1])
    holds(f"row {row}: units exist", inside, axes)
    holds(f"row {row}: units ascend", chosen.diff(dim=1) > 0, axes)
    kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, chosen, True)
    least = rank.sort(dim=1, descending=True).values[:, count - 1 : count]
    axes = ("head", "unit")
    holds(f"row {row}: none below the threshold is kept", ~kept | (rank >= least - SLACK), axes)
    holds(f"row {row}: none above it is left out", kept | (rank <= least + SLACK), axes)
