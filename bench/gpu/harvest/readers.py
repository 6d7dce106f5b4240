"""Times of a layer by every method that is more than page metadata, beside its `attend` alone.

In buffers as wide as a server's; docs/results.md predicts the same figures.
"""

from functools import partial
from time import perf_counter

import torch

from bench.gpu.harvest.checks.inputs import server_units
from bench.gpu.harvest.checks.methods import REHEARSED, UNIT
from bench.gpu.harvest.points import SHAPES
from bench.gpu.kernels import Run
from bench.gpu.log import Fact, Skip
from bench.gpu.methods import (
    DEFAULT,
    FEWER,
    READERS,
    SMALL,
    MethodStep,
    Reader,
    make_method_step,
    repeat,
    seal,
)
from bench.gpu.shapes import Scene, Shape, fits, layers_of, make_scene
from bench.gpu.timing import Times, interleave, record

TIMED = SHAPES[:4]


def readers(run: Run) -> None:
    """Every reader at one shape, then at the next."""
    for shape in (REHEARSED,) if run.rehearse else TIMED:
        layers = layers_of(run.extents, shape, run.device)
        reason = fits(run.extents, shape, layers, run.device)
        scene = None if reason else make_scene(run.extents, shape, run.device, layers)
        for reader in FEWER[1:] if run.rehearse else READERS:
            at = f"{reader}, {shape}"
            run.log.attempt(f"times by {at}", partial(timed, run, at, reader, shape, scene))


def timed(run: Run, at: str, reader: Reader, shape: Shape, scene: Scene | None) -> str:
    """Time the launches of a layer, and those that build records.

    Raises:
        Skip: the pools do not fit the memory.
    """
    if scene is None:
        raise Skip("the pools do not fit the memory")
    units = server_units(run, shape.context // UNIT, UNIT)
    index = SMALL if run.rehearse else DEFAULT
    step = make_method_step(scene, UNIT, reader, run.ops, units, index)
    seal(step)
    built = build(run, step)
    if built:
        run.log.add(Fact(f"build a record in a layer, {at}", built, "us"))
    repeat(step)
    layers = len(scene.kv)
    step.begin()
    if reader.every > 1:  # what is timed is a step that uses what it holds
        for i in range(layers):
            step.decode(i)
        step.end()
        step.begin(later=1)
    calls = {"layer": step.decode, "attend": step.attend}
    made = {name: record(call, layers, run.device) for name, call in calls.items()}
    times: dict[str, Times] = interleave(made, run.repeats, run.device)
    for name in calls:
        run.log.add(Fact(f"{name} by {at}", times[name].least, "us"))
    return f"{layers} layers take turns; {step.fused.nbytes / 2**20:.0f} MiB of buffers"


def build(run: Run, step: MethodStep) -> float:
    """Microseconds for each record of one layer, its kernels compiled; 0 where there is none."""
    records = sum(len(step.jobs(held.summary)) for held in step.metadata.records.values())
    times = list[float]()
    for _ in range(2):
        if step.fused.buffers.records is not None:
            step.fused.buffers.records.of_page.fill_(-1)
            step.fused.buffers.records.page_of.fill_(-1)
        start = finished(run)
        step.build()
        times.append(finished(run) - start)
    return 1e6 * times[-1] / records if records else 0.0


def finished(run: Run) -> float:
    """The time when all that was launched is done."""
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter()
