"""Times of our launches beside dense decode, with or without a green gate; and why.

In the order of what they tell: the rows that targets judge, the same in a server's buffers, layers
with fewer heads, requests on one prefix.
"""

from collections.abc import Callable

from sgl_sparsekv.kernels.triton import load

from bench.gpu.cascade import shared_prefix
from bench.gpu.harvest.checks.inputs import server_units
from bench.gpu.harvest.points import NARROW_SHAPE, SHAPES, narrow
from bench.gpu.kernels import OURS, Run, ours, time_shape
from bench.gpu.log import Check, Fact, Skip
from bench.gpu.shapes import REHEARSED_ALONE, UNITS, Extents, Shape, fits, layers_of, make_scene
from bench.gpu.step import Step, make_step
from bench.gpu.timing import Times, interleave, record
from bench.gpu.viewed import viewed
from bench.record import device_facts


def rows(run: Run) -> None:
    """Everything in turn; each shape in a server's buffers right behind its own."""
    for shape in [REHEARSED_ALONE] if run.rehearse else SHAPES:
        units = list(UNITS[-1:] if run.rehearse else UNITS)
        run.log.attempt(f"times {shape}", lambda s=shape, u=units: time_shape(run, s, u))
        for unit in units:
            at = f"{shape}, units of {unit}, in a server's buffers"
            run.log.attempt(at, lambda a=at, s=shape, u=unit: wide(run, a, s, u))
        over = f"{shape}, over views"
        run.log.attempt(over, lambda a=over, s=shape: views(run, a, s))
        clocks(run, str(shape))
    shared_prefix(run)
    for name, extents in [] if run.rehearse else narrow(run.extents):
        for unit in UNITS:
            at = f"{NARROW_SHAPE}, units of {unit}, heads of {name}"
            run.log.attempt(at, lambda a=at, e=extents, u=unit: few_heads(run, a, e, u))
    for shape in [] if run.rehearse else SHAPES[:2]:
        at = f"{shape}, units of {UNITS[0]}, once more"
        run.log.attempt(at, lambda a=at, s=shape: again(run, a, s))


def clocks(run: Run, after: str) -> None:
    """What the driver says of the clocks now: a card that throttles says so here."""
    found = ", ".join(f"{key} {value}" for key, value in device_facts().items() if "clock" in key)
    run.log.add(Check(f"clocks after {after}", "ok" if found else "skipped", found))


def again(run: Run, at: str, shape: Shape) -> str:
    """The first rows again, at the end: how far a time of this run can be trusted.

    Raises:
        Skip: the pools do not fit the memory.
    """
    return facts(run, at, run.extents, shape, lambda scene: make_step(
        scene, UNITS[0], kernels=run.kernels
    ))  # fmt: skip


def wide(run: Run, at: str, shape: Shape, unit: int) -> str:
    """Buffers as wide as a model's context, and never a round number of units.

    Raises:
        Skip: the pools do not fit the memory.
    """
    units = server_units(run, shape.context // unit, unit)
    return facts(run, at, run.extents, shape, lambda scene: make_step(
        scene, unit, kernels=run.kernels, units=units
    ))  # fmt: skip


def views(run: Run, at: str, shape: Shape) -> str:
    """`attend` over tokens that views list, in turn with the same over as many in whole units.

    Raises:
        Skip: the pools do not fit the memory.
    """
    layers = layers_of(run.extents, shape, run.device)
    reason = fits(run.extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    step = make_step(make_scene(run.extents, shape, run.device, layers), UNITS[-1], 1)
    found = viewed(step, run.kernels or load()).step
    calls = {"attend": step.attend, "attend over views": found.attend}
    for one in (step, found):
        one.begin()
        one.selection(0)
    made = {name: record(call, layers, run.device) for name, call in calls.items()}
    times: dict[str, Times] = interleave(made, run.repeats, run.device)
    for name in calls:
        run.log.add(Fact(f"{name}, {at}", times[name].least, "us"))
    return f"{layers} layers take turns"


def few_heads(run: Run, at: str, extents: Extents, unit: int) -> str:
    """A layer of another model, or of one rank of several.

    Raises:
        Skip: the pools do not fit the memory.
    """
    return facts(run, at, extents, NARROW_SHAPE, lambda scene: make_step(
        scene, unit, kernels=run.kernels
    ))  # fmt: skip


def facts(run: Run, at: str, extents: Extents, shape: Shape, make: Callable[..., Step]) -> str:
    """Time our launches of a step.

    Raises:
        Skip: the pools do not fit the memory.
    """
    layers = layers_of(extents, shape, run.device)
    reason = fits(extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    step = make(make_scene(extents, shape, run.device, layers))
    times: dict[str, Times] = interleave(ours(step), run.repeats, run.device)
    for name in OURS:
        run.log.add(Fact(f"{name}, {at}", times[name].least, "us"))
    return f"{layers} layers take turns"
