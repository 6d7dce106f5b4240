"""`python -m bench.serve --quick`, for real: a peer and ours, one after the other."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from helpers.launcher import Launcher, forked

from bench.serve.__main__ import main
from bench.serve.results import Result, load

ROOT = Path(__file__).parents[3]


def check(result: Result, workloads: tuple[str, ...]) -> None:
    """Every workload has rows of both servers, and sparse ones read less."""
    assert not result.failures
    for workload in workloads:
        rows = [row for row in result.rows if row.workload == workload]
        assert {row.server for row in rows} == {"torch_native", "sparsekv"}
    read = {row.method: row.kv_read for row in result.rows if row.workload == "shared"}
    assert read["full"] == 1.0 and read["quest"] is not None and read["quest"] < 0.7


@pytest.mark.server
def test_one_workload_measures_peer_and_ours(tmp_path: Path, launcher: Launcher) -> None:
    """With servers that are forked."""
    path = tmp_path / "found.json"
    quick = ("--quick", "--json", str(path), "--workloads", "shared", "--concurrency", "1")
    with forked(launcher):
        assert main([*quick]) == 0
    check(load(path), ("shared",))


@pytest.mark.server
@pytest.mark.soak
def test_a_quick_sweep_measures_peer_and_ours(tmp_path: Path) -> None:
    """As a command."""
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "bench.serve", "--quick", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = load(path)
    check(result, ("cold", "hit", "shared", "program"))
    hits = [row for row in result.rows if row.workload == "hit"]
    assert all(row.itl_ms and row.ttft_ms and row.cached_tokens for row in hits)
    programs = [row for row in result.rows if row.workload == "program"]
    assert all(row.cached_tokens and row.cached_tokens >= row.context - 64 for row in programs)
    tree = ElementTree.parse(path.with_suffix(".svg"))
    panels = [one for one in tree.iter() if one.get("class") == "panel"]
    assert len(panels) == 6 and all(panel.findall(".//*") for panel in panels)
