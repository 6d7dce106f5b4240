"""Every kernel that is used later, compiled first, in several processes: no GPU is needed.

The launches of all points are made over tensors without memory and written down; what Triton would
compile for each is compiled, so that later processes find it in its cache. Without a GPU it is
compiled for a Hopper.
"""

import os
from collections.abc import Iterator
from time import monotonic

import torch
import triton
from sgl_sparsekv.kernels.triton import launch
from sgl_sparsekv.kernels.triton.compile import _resources as resources
from sgl_sparsekv.kernels.triton.ops import TritonOps
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bench.gpu.graphs import FORMULAS
from bench.gpu.harvest.checks import methods
from bench.gpu.harvest.checks.inputs import server_units, settings
from bench.gpu.harvest.launches import Launch, recorded
from bench.gpu.harvest.points import (
    EARLY,
    HOPPER,
    NARROW_SHAPE,
    SHAPES,
    SWEPT,
    Point,
    ablations,
    narrow,
    sweeps,
)
from bench.gpu.harvest.readers import TIMED
from bench.gpu.harvest.replays import CONTEXT, ROWS
from bench.gpu.harvest.sweep import LAYER
from bench.gpu.kernels import Run
from bench.gpu.methods import BUILT_AT_ONCE, DEFAULT, READERS, Reader, make_method_step
from bench.gpu.methods import SMALL as SMALL_INDEX
from bench.gpu.shapes import REHEARSED, SHARED, UNITS, Extents, Scene, Shape
from bench.gpu.step import SUMMARIES, Step, static_shape
from bench.gpu.variants import made
from bench.gpu.viewed import with_views
from sgl_sparsekv.types import Candidates, Reduction, StepShape

PROCESSES = min(12, os.cpu_count() or 1)
NOWHERE = torch.device("meta")


def compile_share(run: Run, number: int, of: int = PROCESSES) -> None:
    """Compile every `of`-th binary, from `number` on; a rehearsal only counts them."""
    if run.rehearse:
        run.log.attempt("binaries", lambda: f"{len(distinct(run, number, of))} to compile")
        return
    if not torch.cuda.is_available():
        compile_ahead(HOPPER)
    for one in distinct(run, number, of):
        run.log.attempt(f"compile {one.name}", lambda one=one: compiled(one))


def compiled(one: Launch) -> str:
    """Registers and local bytes per thread, shared bytes per program, and how long it took."""
    start = monotonic()
    built = one.compile()
    seconds = monotonic() - start
    registers, stack, local, _ = resources(built.asm["cubin"])
    return (
        f"{registers} registers, {stack + local} bytes spilled, {built.metadata.shared} bytes "
        f"shared, {seconds:.1f} s"
    )


def distinct(run: Run, number: int, of: int) -> list[Launch]:
    """A share of what is measured or checked later, one launch for each binary."""
    with recorded() as others:
        for point in [*sweeps(), *ablations(), Point(LAYER, EARLY)][number::of]:
            launch_point(run, point)
    return [*launches(run)[number::of], *{one.key: one for one in others}.values()]


def launches(run: Run) -> list[Launch]:
    """What today's kernels launch, one for each binary."""
    with recorded() as found:
        for step, ops in hollow_steps(run):
            launch_all(step, ops)
        for rows in ROWS:
            replayed(run, rows)
        for shape in (methods.REHEARSED,) if run.rehearse else (methods.SMALL, *TIMED):
            for reader in READERS:
                read(run, reader, shape)
    return list({one.key: one for one in found}.values())


def launch_point(run: Run, point: Point) -> None:
    """The one launch that a variant is made for."""
    try:
        kernels = made(point.variant)
    except ValueError:
        return  # said where it is measured
    for shape in REHEARSED if run.rehearse else SWEPT:
        for unit in UNITS:
            exact = shape.context // unit
            for units in (exact, server_units(run, exact, unit))[: 1 + (point.launch == LAYER)]:
                getattr(hollow(kernels, run.extents, shape, unit, units), point.launch)(0)


def hollow_steps(run: Run) -> Iterator[tuple[Step, TritonOps | None]]:
    """Steps of all shapes; with their ops where these are checked alone."""
    own = run.kernels or TritonOps()
    for setting in settings(run):
        yield hollow(own, setting.extents, setting.shape, setting.unit, setting.units), own
    shapes = [*SHAPES, SHARED] if not run.rehearse else REHEARSED
    for shape, unit in ((shape, unit) for shape in shapes for unit in UNITS):
        exact = shape.context // unit
        for units in (exact, server_units(run, exact, unit)):
            yield hollow(own, run.extents, shape, unit, units), None
    shape = REHEARSED[0] if run.rehearse else NARROW_SHAPE
    for _, extents in narrow(run.extents):
        for unit in UNITS:
            yield hollow(own, extents, shape, unit, shape.context // unit), None
    for setting in settings(run):
        step = hollow(own, setting.extents, setting.shape, setting.unit, setting.units)
        yield with_views(step, own, draw=False), None


def hollow(kernels: TritonOps, extents: Extents, shape: Shape, unit: int, units: int) -> Step:
    """A step whose tensors have no memory."""
    scene, batch = hollow_scene(extents, shape), shape.batch
    pool = scene.slots // unit
    static = static_shape(extents, batch, unit, units, pool, NOWHERE)
    fields = [empty(pool, extents.heads, 2, extents.dim, dtype=extents.dtype)]
    sealed, newest = empty(pool, dtype=torch.bool), empty(batch, dtype=torch.int64)
    return Step(scene, unit, kernels.fused(static), sealed, fields, newest)


def hollow_scene(extents: Extents, shape: Shape) -> Scene:
    """A batch whose tensors have no memory."""
    rows, pages = (1 if shape.shared else shape.batch), shape.context // extents.page
    slots, batch = (rows * pages + 4) * extents.page, shape.batch
    keys, values = (empty(slots, extents.heads, extents.dim, dtype=extents.dtype) for _ in range(2))
    return Scene(
        extents, shape, empty(batch, extents.heads, extents.group, extents.dim, dtype=keys.dtype),
        [(keys, values)], empty(batch, pages, dtype=torch.int32),
        empty(batch + 1, shape.context, dtype=torch.int32), empty(batch, dtype=torch.int64),
        empty(batch, dtype=torch.int64),
    )  # fmt: skip


def empty(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(sizes, dtype=dtype, device=NOWHERE)


def read(run: Run, reader: Reader, shape: Shape) -> None:
    """Everything that a step by one reader launches."""
    scene, unit = hollow_scene(run.extents, shape), methods.UNIT
    units, small = server_units(run, shape.context // unit, unit), shape not in TIMED
    how = (units, SMALL_INDEX if small else DEFAULT, small)
    step = make_method_step(scene, unit, reader, run.kernels or TritonOps(), *how)
    pointers = empty(1, dtype=torch.int64), empty(1, dtype=torch.int64)
    for name, held in step.metadata.records.items():
        jobs = empty(BUILT_AT_ONCE, 3, dtype=torch.int32)
        arrays = {key: array[:1] for key, array in held.stacked.items()}
        step.fused.build(name, jobs, scene.req_to_token, scene.kv[0], pointers, arrays, 0)
    step.begin()
    step.decode(0)
    step.end()


def launch_all(step: Step, ops: TritonOps | None) -> None:
    """Everything that a step or a check of it launches."""
    step.once(0)
    step.decode(0)
    if ops is None:
        return
    watched = ops.fused(step.fused.shape, watched=True)
    Step(step.scene, step.unit, watched, step.sealed, step.fields, step.newest).select(0)
    scene, (keys, values) = step.scene, step.scene.kv[0]
    step.fused.summarise(keys, {"min_max": step.fields[0]})
    rows = torch.zeros(scene.shape.batch, dtype=torch.int32)
    table = step.fused.buffers.units[:, : scene.shape.context // step.unit]
    at = Candidates(table.contiguous(), rows, rows)
    how = scene.extents.scale, Reduction.MAX_SOFTMAX
    for summary in SUMMARIES.values():
        ops.summarise(summary, keys, step.fields[0], rows)
        scores = ops.score(summary, scene.q, step.fields[0], at, *how)
    ops.score_exact(scene.q, keys, at, *how, step.unit)
    ops.select(scores, at, rows, rows)
    ops.attend(scene.q, keys, values, step.fused.buffers.selected, rows, rows, how[0], step.unit)


def replayed(run: Run, rows: int) -> None:
    """Everything that a bucket's graph launches."""
    context = 160 if run.rehearse else CONTEXT
    for unit in UNITS:
        step = hollow(TritonOps(), run.extents, Shape(context, rows), unit, context // unit)
        shape: StepShape = step.fused.shape
        names = {**vars(shape), "formulas": frozenset(FORMULAS), "requests": rows + 2}
        fused = TritonOps().fused(StepShape(**names))
        scene = step.scene
        fused.forget(step.sealed, step.newest)
        fused.begin(step.sealed, scene.places, scene.lengths, scene.req_to_token)
        fields = dict.fromkeys(SUMMARIES, step.fields[0])
        fused.decode(step.sealed, 0, scene.q, *scene.kv[0], fields, scene.extents.scale)


def compile_ahead(capability: tuple[int, int]) -> None:
    """Let Triton compile for a GPU that is not here, for the rest of this process."""

    class Absent:
        """What the compiler asks a driver."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability[0] * 10 + capability[1], 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(Absent())
    launch.capability.cache_clear()
    launch.capability = lambda: capability
    assert not triton.knobs.runtime.interpret
