"""What this machine is, and whether Triton runs anything on it."""

import platform
import shutil
import subprocess

import torch
import triton

from bench.gpu.gate import check
from bench.gpu.harvest.gaps import GRID, touch_kernel
from bench.gpu.kernels import Run
from bench.gpu.log import Check, Fact, Skip
from bench.record import device_facts, package_versions

TOOLS = ("ncu", "nvcc", "compute-sanitizer")
SECONDS = 10


def machine(run: Run) -> None:
    """Versions, the driver's answers, tools, and one small kernel."""
    versions = {"python": platform.python_version(), **package_versions()}
    run.log.add(Check("versions", "ok", ", ".join(f"{k} {v}" for k, v in versions.items())))
    found = ", ".join(f"{key} {value}" for key, value in device_facts().items())
    run.log.add(Check("driver", "ok" if found else "skipped", found or "no nvidia-smi"))
    for tool in TOOLS:
        run.log.attempt(tool, lambda name=tool: said(name))
    run.log.attempt("device", lambda: named(run))
    run.log.attempt(f"Triton {triton.__version__}", lambda: trivial(run))


def named(run: Run) -> str:
    """What torch calls it.

    Raises:
        Skip: there is none.
    """
    if run.device.type != "cuda":
        raise Skip("rehearsed on a CPU")
    found = torch.cuda.get_device_properties(run.device)
    run.log.add(Fact("multiprocessors", found.multi_processor_count, ""))
    run.log.add(Fact("memory", found.total_memory / 2**30, "GiB"))
    return str(found.name)


def trivial(run: Run) -> str:
    """Compile and run one kernel.

    Raises:
        AssertionError: it computes something else.
    """
    where = torch.zeros(GRID, dtype=torch.int32, device=run.device)
    touch_kernel[(GRID,)](where, 3)
    check((where == 3).all(), "a program per number did not add 3 to each")
    return f"{GRID} programs"


def said(tool: str) -> str:
    """Last line of a tool's version.

    Raises:
        Skip: it is not installed.
    """
    if shutil.which(tool) is None:
        raise Skip("not on the path")
    done = subprocess.run(
        [tool, "--version"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
