"""`begin`, `forget` and `end`: what a step does once."""

import torch

from bench.gpu.gate import host_plan
from bench.gpu.harvest.checks.inputs import Setting, each, fresh_units, number, prepare
from bench.gpu.harvest.differ import same
from bench.gpu.kernels import Run

GARBAGE = -7_777_777


def check(run: Run) -> None:
    """All three in every setting."""
    each(run, "plan", planned)
    each(run, "table", listed)
    each(run, "forget and end", stamped)


def planned(run: Run, setting: Setting) -> str:
    """The device plans every row as the host does.

    Raises:
        AssertionError: a number differs.
    """
    step = prepare(run, setting)
    step.fused.buffers.plan.fill_(GARBAGE)
    step.begin()
    plan, found = host_plan(step.scene, setting.unit), step.fused.buffers.plan
    wanted = {
        "begin": plan.begin, "end": plan.end, "units": plan.num_units, "count": plan.counts,
        "tail": plan.tail,
    }  # fmt: skip
    for field, (name, want) in enumerate(wanted.items(), 1):
        got = found[field, : setting.shape.batch]
        same(f"plan's {name}", got, number(step, want), ("row",))
    kinds = [step.fused.formula("nothing" if dense else "min_max") for dense in plan.dense]
    same("plan's formula", found[0, : len(kinds)].cpu(), torch.tensor(kinds), ("row",))
    return f"{setting.shape.batch} rows"


def listed(run: Run, setting: Setting) -> str:
    """Physical units of every row, and units that are full and have no stamp.

    Raises:
        AssertionError: a unit differs, or one is missing from the list.
    """
    step = prepare(run, setting)
    held, units = step.fused.buffers, step.scene.units(setting.unit)
    held.table.fill_(GARBAGE)
    step.begin()
    for row, count in enumerate(host_plan(step.scene, setting.unit).num_units.tolist()):
        got, want = held.table[row, :count].long(), units[row, :count]
        same(f"table of row {row}", got, want, ("unit",))
    want, count = fresh_units(step), int(held.pending_count)
    if count != len(want):
        raise AssertionError(f"pending: {count} units are listed, {len(want)} have no stamp")
    same("pending", held.pending[:count].long().sort().values, want, ("place",))
    return f"{count} units without a stamp"


def stamped(run: Run, setting: Setting) -> str:
    """Stamps that a new slot takes away, and those that the end of a step gives.

    Raises:
        AssertionError: a stamp differs.
    """
    step, page = prepare(run, setting), setting.extents.page
    want, per_page = step.sealed.clone(), page // setting.unit
    slots = step.newest // page * page
    for unit in range(per_page):
        want[slots // page * per_page + unit] = False
    step.fused.forget(step.sealed, slots)
    same("stamps after forget", step.sealed, want, ("unit",))
    pending = torch.arange(per_page, 2 * per_page, dtype=torch.int32, device=run.device)
    held = step.fused.buffers
    held.pending[:per_page].copy_(pending)
    held.pending_count.fill_(per_page)
    step.fused.end(step.sealed)
    want[pending.long()] = True
    same("stamps after end", step.sealed, want, ("unit",))
    same("pending after end", held.pending_count, torch.zeros_like(held.pending_count), ("place",))
    return f"{len(slots)} pages"
