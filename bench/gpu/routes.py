"""Attend through stock kernels: do they take the overlapping view, in a graph, and how fast.

Every layer's selection rewrites the pages inside the captured graph; lengths and queries change
between replays, with a host plan before each. Results are compared with our own attend.
"""

from dataclasses import dataclass

import numpy as np
import torch

from bench.gpu.gate import EPS, check, host_plan
from bench.gpu.kernels import Run
from bench.gpu.log import Fact, Skip
from bench.gpu.shapes import SHARPNESS, UNITS, K, Scene, Shape, fits, layers_of, make_scene
from bench.gpu.step import Step, make_step
from bench.gpu.timing import interleave, record
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.routes import ROUTES, PagedAttend, load_route
from sgl_sparsekv.types import AttendShape

SMALL = Shape(4 * K, 3)
TIMED = (Shape(32 * K, 1), Shape(32 * K, 8))


def routes(run: Run) -> None:
    """Each route: eagerly, from a graph, and against our attend."""
    for name in ROUTES:
        for unit in UNITS:
            works = [
                run.log.attempt(f"route {name}, units of {unit}, {how}", call)
                for how, call in (
                    ("eager", lambda n=name, u=unit: eager(run, n, u)),
                    ("graph", lambda n=name, u=unit: graph(run, n, u)),
                )
            ]
            for shape in TIMED if works[-1] else ():
                what = f"route {name}, units of {unit}, times {shape}"
                run.log.attempt(what, lambda n=name, u=unit, s=shape: timed(run, n, u, s))


def attend_shape(scene: Scene, unit: int, graph: bool) -> AttendShape:
    """What a route is made for."""
    one = scene.extents
    return AttendShape(
        scene.shape.batch, one.heads, one.group, one.dim, one.dim, unit,
        scene.shape.context // unit, one.dtype, scene.device, graph,
    )  # fmt: skip


def create(name: str, scene: Scene, unit: int, graph: bool) -> PagedAttend:
    """A route for a scene.

    Raises:
        Skip: it does not serve the shape here.
    """
    route, shape = load_route(name), attend_shape(scene, unit, graph)
    reason = route.unsupported(shape, torch.cuda.get_device_capability(scene.device))
    if reason:
        raise Skip(reason)
    try:
        return route.create(shape)
    except UnsupportedSetup as error:
        raise Skip(str(error)) from error


def plan(paged: PagedAttend, scene: Scene, unit: int) -> None:
    """Host work of a step."""
    rows = host_plan(scene, unit)
    paged.plan(rows.counts, rows.tail)


@dataclass
class Contents:
    """Changes a scene in place: another length and other queries."""

    scene: Scene

    def change(self, number: int) -> None:
        """Lengths within the context, not all alike; queries of the number's seed."""
        rng = torch.Generator().manual_seed(number)
        rows, context = self.scene.shape.batch, self.scene.shape.context
        lengths = context - torch.randint(0, context // 2, (rows,), generator=rng)
        lengths[0] = context - number
        self.scene.lengths.copy_(lengths)
        q = SHARPNESS * torch.randn(self.scene.q.shape, generator=rng)
        self.scene.q.copy_(q.to(self.scene.q.dtype))


def prepare(run: Run, unit: int, layers: int = 3) -> tuple[Scene, Step]:
    """A small scene whose every unit has a stamp but the newest."""
    scene = make_scene(run.extents, SMALL, run.device, layers)
    return scene, make_step(scene, unit, copies=layers)


def eager(run: Run, name: str, unit: int) -> str:
    """Without a graph, three contents.

    Raises:
        AssertionError: it differs from our attend.
    """
    scene, step = prepare(run, unit)
    paged = create(name, scene, unit, graph=False)
    for number in range(3):
        Contents(scene).change(number)
        step.fused.buffers.pending_count.zero_()
        step.begin()
        plan(paged, scene, unit)
        for i in range(step.chosen):
            got = step.decode(i, paged).clone()
            compare(got, step, i)
    return "takes the view; equal to our attend within rounding"


def graph(run: Run, name: str, unit: int) -> str:
    """Captured once, replayed with three other contents.

    Raises:
        AssertionError: it differs from our attend.
    """
    scene, step = prepare(run, unit)
    paged = create(name, scene, unit, graph=True)
    outs = torch.zeros(step.chosen, *scene.q.shape, dtype=scene.q.dtype, device=run.device)

    def body(_: int) -> None:
        step.fused.buffers.pending_count.zero_()
        step.begin()
        for i in range(step.chosen):
            outs[i].copy_(step.decode(i, paged))

    plan(paged, scene, unit)
    recording = record(body, 1, run.device)
    for number in range(1, 4):
        Contents(scene).change(number)
        plan(paged, scene, unit)
        recording.replay()
        torch.cuda.synchronize()
        for i in range(step.chosen):
            compare(outs[i], step, i)
    return "replays with other lengths; pages rewritten in each layer"


def compare(got: torch.Tensor, step: Step, i: int) -> None:
    """A route's result against our own attend: each rounds its weights and its result once."""
    want = step.decode(i).double()
    check(got.isfinite().all(), f"layer {i}: numbers that are not finite")
    values = step.scene.kv[i % step.chosen][1]
    largest = float(values[step.scene.extents.page : step.scene.extents.page * 2].abs().max())
    band = 4 * EPS[got.dtype] * (want.abs() + largest / 4)
    error = (got.double() - want).abs()
    check((error <= band).all(), f"layer {i}: differs by {float(error.max()):.3g}")


def timed(run: Run, name: str, unit: int, shape: Shape) -> str:
    """Run alone, over what was selected last, beside our attend; and the host plan.

    Raises:
        Skip: the pools do not fit the memory.
    """
    layers = layers_of(run.extents, shape, run.device)
    reason = fits(run.extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    scene = make_scene(run.extents, shape, run.device, layers)
    step = make_step(scene, unit, copies=2)
    paged = create(name, scene, unit, graph=True)
    plan(paged, scene, unit)
    step.begin()
    step.decode(0)
    step.decode(0, paged)

    def attend(i: int) -> torch.Tensor:
        keys, values = scene.kv[i % layers]
        return paged.run(scene.q, keys, values, run.extents.scale, lse=False)[0]

    calls = {"route": attend, "ours": step.attend}
    recorded = {key: record(call, layers, run.device) for key, call in calls.items()}
    times = interleave(recorded, run.repeats, run.device)
    at = f"{shape}, units of {unit}"
    run.log.add(Fact(f"attend by {name}, {at}", times["route"].least, "us"))
    run.log.add(Fact(f"attend by triton, {at}, same run", times["ours"].least, "us"))
    host = [host_microseconds(paged, scene, unit) for _ in range(20)]
    run.log.add(Fact(f"host plan of {name}, {at}", float(np.median(host)), "us"))
    return f"{times['ours'].least / times['route'].least:.2f} of our attend's speed"


def host_microseconds(paged: PagedAttend, scene: Scene, unit: int) -> float:
    """Wall time of one plan."""
    import time

    rows = host_plan(scene, unit)
    torch.cuda.synchronize()
    start = time.perf_counter()
    paged.plan(rows.counts, rows.tail)
    return 1e6 * (time.perf_counter() - start)
