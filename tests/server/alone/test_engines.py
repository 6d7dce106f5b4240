"""Engines of one process: each answers and refuses by its own options and vocabulary."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.server, pytest.mark.soak]


def test_no_engine_is_judged_by_another(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.helpers.engines", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    answered = ("quest asked for quest", "full asked for full", "dense, that token")
    assert {name: found[name] for name in answered} == dict.fromkeys(answered, "answered")
    assert "sparsekv.method must be one of quest on this server" in found["quest asked for full"]
    assert "sparsekv.method must be one of full on this server" in found["full asked for quest"]
    assert found["ours, a token too large"].startswith("input_ids[0][0] must be a token id")
