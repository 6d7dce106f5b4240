"""Examples that start what they need: the engine, and the benchmark that starts servers in turn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launcher import Launcher

from sgl_sparsekv.models.analytic import save_analytic
from sgl_sparsekv.tooling.servers import free_port

from ..test_examples import EXAMPLES, ROOT, percent, run_example

SMALL = {"device": "cpu", "max_total_tokens": 16384, "chunked_prefill_size": 2048}
"""Of a CPU machine with little memory."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `sparsekv model analytic`."""
    folder = tmp_path_factory.mktemp("examples") / "model"
    save_analytic(folder)
    return folder


def test_the_engine_mixes_readers_in_one_batch(
    model: Path, launcher: Launcher, pytestconfig: pytest.Config
) -> None:
    """Right answers from all that look for pages, and what the engine was told is the default."""
    engine = SMALL | {"log_level": "error", "sleep_on_idle": True}
    words = (str(model), "--engine", json.dumps(engine))
    if pytestconfig.getoption("soak"):
        printed = run_example("offline_engine.py", *words)
    else:
        printed = launcher.run(EXAMPLES / "offline_engine.py", *words).splitlines()
    print("\n".join(printed))
    printed = printed[[line.startswith("expected") for line in printed].index(True) :]
    expected = printed[0].removeprefix("expected: ")
    answers = [line for line in printed if "of the KV cache read" in line]
    assert [expected in answer for answer in answers] == [True, True, True, False]
    assert percent(answers[1]) == [100.0] and percent(answers[2])[0] < percent(answers[0])[0] < 100
    assert sum("attention_mass" in line for line in printed) == 2
    assert printed[1] == "{} -> quest, budget 1024"


@pytest.mark.soak
def test_the_gpu_benchmark_runs_on_a_cpu_with_a_tiny_model(model: Path, tmp_path: Path) -> None:
    """The same lines as on a GPU: every number is set from outside."""
    small = {
        "MODEL": str(model),
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
        "DENSE": "torch_native",
        "SPARSE_FLAGS": "--sparsekv-method quest --sparsekv-budget 256 --sparsekv-dense-layers 0",
        "SERVER_FLAGS": "--device cpu --max-total-tokens 16384 --sleep-on-idle",
        "PREFIXES": "2",
        "PER_PREFIX": "3",
        "PREFIX_LEN": "1024",
        "QUESTION_LEN": "16",
        "OUTPUT_LEN": "8",
        "CONCURRENCY": "2",
        "GPU_SUITE": "make -n gpu",
        "PORT": str(free_port()),
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **small}
    script = ["bash", str(ROOT / "examples/gpu_benchmark.sh")]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=590)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    lines = ended.stdout.splitlines()
    native, sparse = (
        next(line.split() for line in lines if line.startswith(f"{name} "))
        for name in ("torch_native", "sparsekv")
    )
    assert native[4:] == ["-", "6"] and sparse[5] == "6"
    assert 15 < float(sparse[4].rstrip("%")) < 40
    assert "bench.gpu" in lines[-1] or "bench.report" in ended.stdout
    again = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1 and "is there already" in again.stdout
