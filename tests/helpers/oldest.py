"""The oldest torch and Triton that the GPU path is tried with, in an environment of their own."""

import shutil
import subprocess
import sys
from pathlib import Path

from helpers.fresh import ROOT

PACKAGES = ("torch==2.11.*", "triton==3.6.0", "numpy<2.4", "pytest")
"""Triton 3.6's interpreter makes numbers of arrays as numpy does up to 2.3."""
FOLDER = ROOT / "build" / "oldest-gpu-software"
"""Kept: torch with its CUDA libraries is some gigabytes."""


def oldest_python() -> Path:
    """Its python; the environment is made on first use, by the package installer's own defaults."""
    python, ready = FOLDER / "bin" / "python", FOLDER / ".ready"
    if not ready.exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        ready.touch()
    return python
