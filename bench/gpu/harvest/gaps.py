"""What a launch costs before it reads anything: gaps in a graph, programs with nothing to do."""

import torch
import triton
import triton.language as tl

from bench.gpu.harvest.checks.inputs import server_units
from bench.gpu.kernels import Run, bandwidth
from bench.gpu.log import Fact
from bench.gpu.shapes import REHEARSED, UNITS, K, Shape, make_scene
from bench.gpu.step import make_step
from bench.gpu.timing import interleave, record

GRID = 128
ALIKE = 32
"""Times that a graph repeats a group of launches."""
IDLE = (Shape(2 * K, 8), Shape(2 * K, 32))


@triton.jit
def touch_kernel(where, number):
    """Add to one number per program: as little as a kernel can do."""
    place = where + tl.program_id(0)
    tl.store(place, tl.load(place) + number)


def gaps(run: Run) -> None:
    """Bandwidth, then launches."""
    bandwidth(run)
    run.log.attempt("launch gaps", lambda: empty_launches(run))
    for shape in REHEARSED if run.rehearse else IDLE:
        for unit in UNITS:
            name = f"idle programs, {shape}, units of {unit}"
            run.log.attempt(name, lambda n=name, s=shape, u=unit: idle(run, n, s, u))


def empty_launches(run: Run) -> str:
    """One, two and three launches in a row, and three that need not wait for each other's end."""
    where = torch.zeros(GRID, dtype=torch.int32, device=run.device)
    early = {"launch_pdl": True} if overlaps(run) else {}

    def group(count: int, options: dict[str, bool]) -> None:
        for _ in range(count):
            touch_kernel[(GRID,)](where, 1, **options)

    wanted = {f"{n} launches": (n, {}) for n in (1, 2, 3)}
    if early:
        wanted["3 launches, programmatic dependent launch"] = (3, early)
    repeats = 1 if run.rehearse else ALIKE
    recorded = {
        name: record(lambda _, a=asked: group(*a), repeats, run.device)
        for name, asked in wanted.items()
    }
    times = interleave(recorded, run.repeats, run.device)
    for name, found in times.items():
        run.log.add(Fact(f"{name} of an empty kernel", found.least, "us"))
    gap = (times["3 launches"].least - times["1 launches"].least) / 2
    run.log.add(Fact("gap between launches in a graph", gap, "us"))
    return f"{GRID} programs each"


def overlaps(run: Run) -> bool:
    """Whether this GPU may start a launch before the last one ends."""
    return run.device.type == "cuda" and torch.cuda.get_device_capability(run.device) >= (9, 0)


def idle(run: Run, at: str, shape: Shape, unit: int) -> str:
    """`score` over requests that have no candidates, in a server's buffers and in narrow ones."""
    scene = make_scene(run.extents, shape, run.device, 1)
    exact = shape.context // unit
    recorded = {}
    for name, units in (("wide", server_units(run, exact, unit)), ("narrow", exact)):
        step = make_step(scene, unit, 1, kernels=run.kernels, units=units)
        scene.lengths.fill_(1)
        step.begin()
        recorded[name] = record(step.score, 1 if run.rehearse else ALIKE, run.device)
    times = interleave(recorded, run.repeats, run.device)
    for name, found in times.items():
        run.log.add(Fact(f"{at}: score in {name} buffers", found.least, "us"))
    return "every request has one token"
