"""The gate: all launches of a layer together, at every shape that is judged."""

from bench.gpu.gate import gate
from bench.gpu.harvest.points import SHAPES
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.shapes import REHEARSED_ALONE, SHARED, SHARED_REHEARSED, UNITS, Shape, fits


def check(run: Run) -> None:
    """Each shape and unit size; times of one that is not passed are not judged."""
    shapes = [REHEARSED_ALONE, SHARED_REHEARSED] if run.rehearse else [*SHAPES, SHARED]
    for shape in shapes:
        for unit in UNITS[-1:] if run.rehearse else UNITS:
            name = f"gate {shape}, units of {unit}"
            run.log.attempt(name, lambda s=shape, u=unit: judged(run, s, u))


def judged(run: Run, shape: Shape, unit: int) -> str:
    """Pass the gate of a shape.

    Raises:
        AssertionError: something differs from the reference.
        Skip: the pools do not fit the memory.
    """
    reason = fits(run.extents, shape, 1, run.device)
    if reason:
        raise Skip(reason)
    return gate(run.extents, shape, unit, run.device, run.kernels)
