"""Kernels that could serve in place of today's: whether they are right, and whether faster.

`kernels/triton/tuning.py` says who serves (`SELECT_BY`); it is written from what is found here.
"""

from dataclasses import replace

import torch
from sgl_sparsekv.kernels.triton import launch
from sgl_sparsekv.kernels.triton.catalogue import COMMON
from sgl_sparsekv.kernels.triton.compile import cuda_build
from sgl_sparsekv.kernels.triton.cuda import emulation

from bench.gpu.harvest.checks import select
from bench.gpu.harvest.checks.inputs import settings
from bench.gpu.harvest.points import HOPPER, SELECT_CUDA, SHAPES, candidates
from bench.gpu.harvest.sweep import measure
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.variants import made
from sgl_sparsekv.errors import UnsupportedSetup

NAME = f"select in {SELECT_CUDA.name}"


def checked(run: Run) -> None:
    """`select` in CUDA C++, as the one in Triton is checked; a rehearsal emulates it."""
    if ready(run):
        select.check(replace(run, kernels=made(SELECT_CUDA)), NAME)


def timed(run: Run) -> None:
    """Every measured shape in a server's buffers, in turns with today's kernel."""
    if ready(run):
        measure(run, list(candidates()), SHAPES, served=True)


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
