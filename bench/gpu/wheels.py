"""Install what is missing from a folder of wheels, and nothing from anywhere else."""

import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.checkout import ROOT
from bench.gpu.log import FAILED, OK, Check

WANTED = {
    "pytest": "pytest",
    "xdist": "pytest-xdist",
    "flashinfer": "flashinfer-python",
    "sgl_kernel": "sglang-kernel",
    "sglang": "sglang",
}
"""Module -> distribution."""


def install(folder: Path) -> list[Check]:
    """Install each missing package with what it needs; one that cannot be had stops no other."""
    done = []
    for module, name in WANTED.items():
        if find_spec(module) is None:
            done.append(pip(name, ["--find-links", str(folder.resolve()), name]))
    names = {point.name for point in entry_points(group="sglang.srt.plugins")}
    if find_spec("sglang") is not None and "sparsekv" not in names:
        own = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        done.append(pip("sgl_sparsekv", own))
    return done


def pip(name: str, arguments: list[str]) -> Check:
    """One installation without an index."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (found.stderr or found.stdout).strip().splitlines() or [""]
    wrong = [text for text in lines if "ERROR" in text or "No module named pip" in text]
    if found.returncode == 0:
        return Check(f"install {name}", OK)
    return Check(f"install {name}", FAILED, (wrong or lines)[-1][:300])
