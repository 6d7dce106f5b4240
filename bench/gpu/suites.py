"""Tests that exist already, run where the GPU is."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import torch

from bench.gpu.checkout import ROOT
from bench.gpu.gate import check, gate
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.shapes import Extents, Shape

PARITY = "tests/kernels/test_triton_*.py"
KIT = "tests/backend/test_attention_kit.py"
BUILT_IN = (
    (Extents(8, 4, 64, torch.float16, budget=512), 64),
    (Extents(2, 8, 128, torch.bfloat16, budget=512), 16),
    (Extents(4, 1, 96, torch.bfloat16, budget=512), 32),
    (Extents(2, 4, 256, torch.bfloat16, budget=512), 16),
    (Extents(2, 7, 80, torch.float16, budget=512), 16),
)


def parity(run: Run) -> None:
    """The kernels' own tests; without pytest, the gate at other head sizes and types."""
    if find_spec("pytest") is None:
        for extents, unit in BUILT_IN:
            name = f"built-in parity, head_dim {extents.dim}, {extents.dtype}, units of {unit}"
            shape = Shape(2048, 3)
            run.log.attempt(name, lambda e=extents, u=unit, s=shape: gate(e, s, u, run.device))
        return
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(PARITY))
    arguments = ["--maxfail", "50", *workers()]
    if find_spec("pytest_timeout") is not None:
        arguments += ["--timeout", "60"]
    if run.log.path is not None:
        arguments += ["--junitxml", str(run.log.path.with_name("parity.xml"))]
    chosen = ["--collect-only"] if run.rehearse else arguments
    run.log.attempt("parity tests", lambda: pytest(files, chosen))


def kit(run: Run) -> None:
    """SGLang's attention kit on our backend."""
    run.log.attempt("attention kit", lambda: pytest([KIT], ["-m", "gpu"]))


def workers() -> list[str]:
    """Several processes, where pytest can: most of the time goes into compiling."""
    return ["-n", str(min(12, os.cpu_count() or 1))] if find_spec("xdist") else []


def pytest(files: list[str], arguments: list[str]) -> str:
    """Run tests from the checkout; gives pytest's last line.

    Raises:
        AssertionError: a test failed; names the first ones.
        Skip: nothing was there to run.
    """
    command = [sys.executable, "-m", "pytest", "-p", "bench.gpu.checkout", "-q", "-m", "not server"]
    done = subprocess.run(
        [*command, *arguments, *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        print(done.stdout[-20_000:], done.stderr[-4_000:], flush=True)
    if done.returncode == 5:
        raise Skip("pytest found no test")
    failed = [line[:160] for line in lines if re.match("(FAILED|ERROR) ", line)]
    last = lines[-1] if lines else done.stderr.strip()[-300:]
    check(done.returncode == 0, "; ".join([last, *failed[:5]]))
    return last
