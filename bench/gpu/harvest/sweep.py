"""One launch by many variants of its kernel: other constants, or a part of it left out."""

from collections.abc import Iterable, Sequence

from triton.errors import TritonError

from bench.gpu.harvest.checks.inputs import server_units
from bench.gpu.harvest.points import SWEPT, Point, ablations, sweeps
from bench.gpu.kernels import Run
from bench.gpu.log import Fact, Skip
from bench.gpu.shapes import REHEARSED_ALONE, UNITS, Scene, Shape, fits, layers_of, make_scene
from bench.gpu.step import Step, make_step
from bench.gpu.timing import Recording, interleave, record
from bench.gpu.variants import Variant, made

TODAY = Variant("today's")
LAUNCHES = ("score", "select", "attend")
"""Each needs what those before it leave."""
LAYER = "decode"
"""All of them in turn."""


def swept(run: Run) -> None:
    """Constants around today's, launch by launch."""
    measure(run, list(sweeps()))


def ablated(run: Run) -> None:
    """Kernels without one of their parts."""
    measure(run, list(ablations()))


def measure(
    run: Run, points: list[Point], shapes: Sequence[Shape] = SWEPT, served: bool = False
) -> None:
    """Every shape and unit size; a launch's points take turns with today's kernel.

    A rehearsal takes the first point of each launch.

    Args:
        run: where and how.
        points: launches and variants.
        shapes: batches.
        served: buffers are as wide as a server's, else as the batch.
    """
    if run.rehearse:
        points = [next(p for p in points if p.launch == name) for name in launches(points)]
    for shape in [REHEARSED_ALONE] if run.rehearse else shapes:
        scene = run.log.attempt(f"tensors of {shape}", lambda s=shape: make(run, s))
        for unit in UNITS[:1] if run.rehearse else UNITS:
            exact = shape.context // unit
            units = server_units(run, exact, unit) if served else exact
            step = scene and run.log.attempt(
                f"step of {shape}, units of {unit}",
                lambda s=scene, u=unit, n=units: make_step(s, u, kernels=run.kernels, units=n),
            )
            for launch in launches(points) if step else ():
                if launch == "attend" and unit != UNITS[0]:
                    continue  # its time hardly depends on the unit
                chosen = [point for point in points if point.launch == launch]
                name = f"{launch} {shape}, units of {unit}"
                run.log.attempt(name, lambda n=name, s=step, c=chosen: turns(run, n, s, c))


def launches(points: Iterable[Point]) -> list[str]:
    """Names of launches, each once."""
    return list(dict.fromkeys(point.launch for point in points))


def make(run: Run, shape: Shape) -> Scene:
    """Pools and requests.

    Raises:
        Skip: the pools do not fit the memory.
    """
    layers = layers_of(run.extents, shape, run.device)
    reason = fits(run.extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    return make_scene(run.extents, shape, run.device, layers)


def turns(run: Run, at: str, step: Step, points: list[Point]) -> str:
    """Time a launch by all variants; those that do not run are entries of their own."""
    recorded: dict[str, Recording] = {}
    for variant in (TODAY, *(point.variant for point in points)):
        ready = run.log.attempt(
            f"{at}, {variant.name}: ready", lambda v=variant: recording(run, step, v, points)
        )
        if ready is not None:
            recorded[variant.name] = ready
    times = interleave(recorded, run.repeats, run.device)
    for name, found in times.items():
        run.log.add(Fact(f"{at}: {name}", found.least, "us"))
    best = min(times, key=lambda name: times[name].least)
    return f"fastest: {best}, {times[best].least:.2f} us"


def recording(run: Run, step: Step, variant: Variant, points: list[Point]) -> Recording:
    """One launch, captured; what is before it has run.

    Raises:
        Skip: today's sources lack what the variant changes, or it does not fit this GPU.
    """
    try:
        mine = step if variant == TODAY else step.by(made(variant))
        launch, wide = points[0].launch, max(len(mine.fields), mine.chosen)
        mine.begin()
        for before in LAUNCHES[: LAUNCHES.index(launch)] if launch != LAYER else ():
            getattr(mine, before)(0)
        count = mine.chosen if launch in ("attend", LAYER) else wide
        return record(getattr(mine, launch), count, run.device)
    except (ValueError, TritonError) as error:
        raise Skip(str(error)) from error
