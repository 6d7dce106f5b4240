"""Nsight Compute on the three launches of a layer, where it is installed."""

import re
import shutil
import subprocess
import sys

from bench.gpu.checkout import ROOT
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.shapes import REHEARSED_ALONE, UNITS, K, Shape, make_scene
from bench.gpu.step import make_step

SHAPE = Shape(32 * K, 8)
KERNELS = "regex:score_kernel|select_kernel|attend_kernel"
MODULE = "bench.gpu.harvest"


def profile(run: Run) -> None:
    """A report of three launches, opened later with ncu's own viewer."""
    run.log.attempt("ncu", lambda: collect(run))


def collect(run: Run) -> str:
    """Run one layer under ncu.

    Raises:
        Skip: it is not installed, or may not read the counters.
    """
    if run.rehearse:
        layer(run)
        raise Skip("one layer ran; ncu is not rehearsed")
    program = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if program is None:
        raise Skip("ncu is not installed")
    assert run.log.path is not None
    out = run.log.path.with_name("layer.ncu-rep")
    command = [program, "--set", "full", "-k", KERNELS, "-c", "3", "-f", "-o", str(out)]
    child = [sys.executable, "-m", MODULE, "--layer"]
    done = subprocess.run([*command, *child], cwd=ROOT, capture_output=True, text=True, check=False)
    if not out.exists():
        last = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        wrong = [line for line in last if re.search("ERR|==ERROR", line)]
        raise Skip(f"ncu wrote no report: {(wrong or last)[-1][:300]}")
    return f"{out.name}, {out.stat().st_size / 2**20:.1f} MiB"


def layer(run: Run) -> None:
    """Score, select and attend once."""
    shape = REHEARSED_ALONE if run.rehearse else SHAPE
    step = make_step(make_scene(run.extents, shape, run.device, 1), UNITS[0], 1)
    step.begin()
    step.decode(0)
