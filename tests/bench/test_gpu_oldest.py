"""`bench.gpu.harvest` under the oldest software of a GPU host, without a GPU."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.oldest import oldest_python
from helpers.soak import record

ROOT = Path(__file__).parents[2]
KERNELS = {"begin", "forget", "seal", "score", "select", "attend", "summarise", "share"}
FIGURES = re.compile(r"(\d+) registers, (\d+) bytes spilled, (\d+) bytes shared, ([\d.]+) s")


def harvest(python: Path, logs: Path, *arguments: str) -> dict[str, Any]:
    """What a run has written; it must have passed."""
    start = time.monotonic()
    command = [str(python), "-m", "bench.gpu.harvest", "--logs", str(logs), *arguments]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTHON"))}
    env = {**kept, "TRITON_CACHE_DIR": str(logs / "triton"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    report: dict[str, Any] = json.loads((logs / "report.json").read_text())
    return {**report, "seconds": round(time.monotonic() - start)}


@pytest.mark.soak
def test_the_oldest_software_compiles_and_rehearses_everything(tmp_path: Path) -> None:
    """Every launch of the harvest for a Hopper, by Triton's own launcher; then all stages."""
    python = oldest_python()
    compiled = harvest(python, tmp_path / "compile", "--only", "compile", "--seconds", "3000")
    every = [one for one in compiled["entries"] if one["name"].startswith("compile ")]
    found = [match for one in every if (match := FIGURES.match(one["detail"]))]
    assert len(found) == len(every) > 150
    served = [one for one in every if "(variant)" not in one["name"]]
    kernels = {one["name"].removeprefix("compile ").partition(":")[0] for one in served}
    assert kernels >= KERNELS and len(served) > 60
    spilling = [one for one in served if re.search(r"[1-9]\d* bytes spilled", one["detail"])]
    assert not [one for one in spilling if "HAS_EXACT True" not in one["name"]], "the oracle's may"
    rehearsed = harvest(python, tmp_path / "rehearse", "--rehearse")
    checks = [one for one in rehearsed["entries"] if one["kind"] == "Check"]
    versions = next(one["detail"] for one in checks if one["name"] == "versions")
    assert "torch 2.11" in versions and "triton 3.6.0" in versions
    figures = [tuple(map(float, one.groups())) for one in found]
    record("oldest_gpu_software", {
        "versions": versions,
        "compiled": {
            "binaries": len(found), "spilling": sum(spilled > 0 for _, spilled, _, _ in figures),
            "spilling_and_served": len(spilling),
            "most_registers": int(max(one[0] for one in figures)),
            "most_shared_bytes": int(max(one[2] for one in figures)),
            "compiler_seconds": round(sum(one[3] for one in figures)),
            "seconds": compiled["seconds"],
        },
        "rehearsed": {
            "ok": sum(one["status"] == "ok" for one in checks),
            "failed": sum(one["status"] == "failed" for one in checks),
            "skipped": sorted({one["detail"] for one in checks if one["status"] == "skipped"}),
            "seconds": rehearsed["seconds"],
        },
    })  # fmt: skip
