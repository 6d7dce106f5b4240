"""What a launch is given when it is checked alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from bench.gpu.gate import ROWS, host_plan
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.shapes import QUICK, UNITS, Extents, Shape, fits, make_scene
from bench.gpu.step import Step, make_step
from sgl_sparsekv.geometry import ceil_div
from sgl_sparsekv.selection.policy import RowPlan
from sgl_sparsekv.types import Candidates

SERVED = 131_072 + 4
"""Tokens that a row of a server's table holds: a model's context, and what SGLang adds."""
SMALL, SMALL_BUDGET = Shape(320, 3), 192
LESS = 17
"""Tokens that each row is shorter than the one before it."""
CHECKED = 3
"""Measured shapes at which launches are checked alone; the gate takes all."""
HIDDEN = 8
"""Every such candidate has no stamp, and NaN for its fields."""


@dataclass(frozen=True)
class Setting:
    """Where launches are checked.

    Attributes:
        extents: the layer.
        shape: the batch.
        unit: tokens per unit.
        units: width of the buffers.
    """

    extents: Extents
    shape: Shape
    unit: int
    units: int

    def __str__(self) -> str:
        wide = "" if self.units == self.shape.context // self.unit else f", {self.units} wide"
        return f"{self.shape}, units of {self.unit}{wide}"


def settings(run: Run) -> Iterator[Setting]:
    """The smallest first; each in buffers as wide as the batch, then in a server's.

    A rehearsal has a server's alone: they are the harder ones.
    """
    small = replace(run.extents, budget=SMALL_BUDGET), SMALL
    shapes = [] if run.rehearse else [(run.extents, shape) for shape in QUICK]
    for extents, shape in (small, *shapes[:CHECKED]):
        for unit in UNITS[-1:] if run.rehearse else UNITS:
            exact = shape.context // unit
            for units in (exact, server_units(run, exact, unit))[run.rehearse :]:
                yield Setting(extents, shape, unit, units)


def server_units(run: Run, exact: int, unit: int) -> int:
    """Units of the longest request that a server takes: never a round number."""
    return exact + 5 if run.rehearse else ceil_div(SERVED, unit)


def each(run: Run, what: str, call: Callable[[Run, Setting], str | None]) -> None:
    """Try a check in every setting."""
    for setting in settings(run):
        run.log.attempt(f"{what}, {setting}", lambda s=setting: call(run, s))


def prepare(run: Run, setting: Setting) -> Step:
    """A layer of requests of different lengths; units without a stamp have NaN for their fields.

    Raises:
        Skip: the pools do not fit the memory.
    """
    reason = fits(setting.extents, setting.shape, 1, run.device)
    if reason:
        raise Skip(reason)
    scene = make_scene(setting.extents, setting.shape, run.device, layers=1)
    step = make_step(scene, setting.unit, 1, True, run.kernels, setting.units)
    scene.lengths -= torch.arange(setting.shape.batch, device=run.device) * LESS
    hidden = scene.units(setting.unit)[:, ::HIDDEN].flatten()
    step.sealed[hidden] = False
    step.fields[0][hidden] = torch.nan
    return step


def rows_of(setting: Setting) -> list[int]:
    """Rows that are compared with the reference."""
    batch = setting.shape.batch
    return sorted({0, batch // 2, batch - 1})[:ROWS]


def fresh_units(step: Step) -> torch.Tensor:
    """Full units without a stamp, int64 ascending: those that `begin` must find."""
    units = step.scene.units(step.unit)
    number = torch.arange(units.shape[1], device=units.device)
    full = number[None] < (step.scene.lengths // step.unit)[:, None]
    return units[full & ~step.sealed[units]].unique()


def put(step: Step, dense_layers: int = 0) -> RowPlan:
    """Plan the step by the host's arithmetic, without the device's."""
    plan = host_plan(step.scene, step.unit)
    step.put(plan, fresh_units(step).int(), dense_layers)
    return plan


def candidates(step: Step, plan: RowPlan) -> Candidates:
    """Of every row."""
    begin, end = (number(step, values) for values in (plan.begin, plan.end))
    return Candidates(step.scene.units(step.unit).int(), begin, end)


def number(step: Step, values: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> torch.Tensor:
    """A host's array as int32 on the device."""
    return torch.from_numpy(values).int().to(step.scene.device)
