"""What could serve in place of today's kernels and launches: is it right, and is it faster?

`kernels/triton/tuning.py` says what serves (`SELECT_BY`, `STARTS_EARLY`); it is written from what
is found here.
"""

from dataclasses import replace

import torch
from sgl_sparsekv.kernels.triton import launch
from sgl_sparsekv.kernels.triton.catalogue import COMMON
from sgl_sparsekv.kernels.triton.compile import cuda_build
from sgl_sparsekv.kernels.triton.cuda import emulation

from bench.gpu.graphs import Bucket
from bench.gpu.harvest import replays
from bench.gpu.harvest.checks import select, whole
from bench.gpu.harvest.checks.inputs import settings
from bench.gpu.harvest.gaps import overlaps
from bench.gpu.harvest.points import EARLY, HOPPER, SELECT_CUDA, SHAPES, candidates
from bench.gpu.harvest.sweep import LAYER, measure
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.shapes import REHEARSED_ALONE, SHARED, SHARED_REHEARSED, UNITS
from bench.gpu.variants import made
from sgl_sparsekv.errors import UnsupportedSetup

NAME = f"select in {SELECT_CUDA.name}"
RACES = 500
"""Replays of a layer whose launches start early, against one checksum."""


def checked(run: Run) -> None:
    """`select` in CUDA C++, as the one in Triton is checked; a rehearsal emulates it."""
    if ready(run):
        select.check(replace(run, kernels=made(SELECT_CUDA)), NAME)


def early(run: Run) -> None:
    """Layers whose launches start early: the gate, and replays that must not differ.

    A rehearsal launches one after the other, as the interpreter does.
    """
    if run.log.attempt(f"{EARLY.name}: can be", lambda: can_start_early(run)) is None:
        return
    mine = replace(run, kernels=made(EARLY))
    shapes = [REHEARSED_ALONE, SHARED_REHEARSED] if run.rehearse else [*SHAPES[:2], SHARED]
    for shape in shapes:
        name = f"{EARLY.name}: gate of {shape}"
        run.log.attempt(name, lambda s=shape: whole.judged(mine, s, UNITS[-1]))
    bucket = Bucket(1, 160, UNITS[-1], 2, 1) if run.rehearse else Bucket(8, replays.CONTEXT, 16)
    count = 3 if run.rehearse else RACES
    name = f"{EARLY.name}: {count} replays"
    run.log.attempt(name, lambda: replays.equal(replays.made(mine, bucket), count))


def can_start_early(run: Run) -> str:
    """What is launched.

    Raises:
        Skip: this GPU is too old for it.
    """
    if not run.rehearse and not overlaps(run):
        raise Skip("programmatic dependent launch needs compute capability 9.0 or newer")
    return "each launch of a layer waits at its head for the one in front of it"


def timed(run: Run) -> None:
    """Every measured shape in a server's buffers, in turns with today's kernels and launches."""
    points = list(candidates())
    if not ready(run):
        points = [point for point in points if point.launch != "select"]
    if not run.rehearse and not overlaps(run):
        points = [point for point in points if point.launch != LAYER]
    measure(run, points, SHAPES, served=True)


def ready(run: Run) -> bool:
    """Whether it can be compiled here."""
    return run.log.attempt(f"{NAME} compiles", lambda: compiled(run)) is not None


def compiled(run: Run) -> str:
    """What the compiler says, for the widest of the buffers that are checked.

    Raises:
        Skip: a compiler is missing.
    """
    units = max(one.units for one in settings(run))
    try:
        if run.rehearse:
            emulation.check_machine()
        arch = launch.capability() if torch.cuda.is_available() else HOPPER
        built = cuda_build(arch, units, replace(COMMON, group=run.extents.group))
    except UnsupportedSetup as error:
        raise Skip(str(error)) from error
    return (
        f"{built.registers} registers, {built.local_bytes} bytes spilled, {built.shared_bytes} "
        f"bytes shared"
    )
