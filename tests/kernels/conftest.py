"""CPU ops at every instruction set that this machine runs."""

import pytest
from sgl_sparsekv.kernels.cpu.build import build_level
from sgl_sparsekv.kernels.cpu.levels import runnable_levels
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.triton import launch
from sgl_sparsekv.kernels.triton.tuning import NUM_SPLITS

from sgl_sparsekv.kernels import cpu


@pytest.fixture(autouse=True)
def many_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as on a GPU: `join_splits` takes several rounds."""
    monkeypatch.setattr(launch, "INTERPRETED_SPLITS", NUM_SPLITS)


@pytest.fixture(scope="session", params=[level.name for level in runnable_levels()])
def ops(request: pytest.FixtureRequest) -> CpuOps:
    """CPU ops of one level, built on demand."""
    (level,) = (level for level in runnable_levels() if level.name == request.param)
    build_level(level)
    return cpu.load(level.name)
