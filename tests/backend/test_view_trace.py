"""What a GPU's trace tells of rows with views."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sgl_sparsekv.backend.planner import HostPlan
from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.geometry import Geometry


def test_the_tokens_of_a_view_are_told_and_of_a_row_that_has_none_yet_all_units(
    sglang: None,
) -> None:
    from sgl_sparsekv.backend.observer import StepObserver

    told: list[Any] = []
    options, geometry = RequestOptions("snapkv", 128, dense_layers=0), Geometry(64, 16)
    lengths = np.array([300, 200])
    observer = StepObserver.__new__(StepObserver)
    observer.trace = SimpleNamespace(publish=told.append)  # type: ignore[assignment]
    observer._plan = HostPlan(np.array([4, 7]), lengths, [options] * 2, geometry, [True, False])
    layout = SimpleNamespace(num_kv_heads=2)
    observer.metadata = SimpleNamespace(layout=layout, geometry=geometry)  # type: ignore[assignment]
    observer.table = SimpleNamespace(entry=lambda row: SimpleNamespace(rid=f"r{row}"))  # type: ignore[assignment]
    observer.rank, observer.step = SimpleNamespace(tp=0, dp=0, pp=0), 3  # type: ignore[assignment]
    kept = torch.tensor([[0, 5, 299], [1, 299, -1]], dtype=torch.int32)
    asked: list[int] = []

    def listed(entry: Any, length: int) -> torch.Tensor | None:
        asked.append(length)
        return kept if entry.rid == "r4" else None

    observer.watched(1, torch.zeros(2, 2, 20, dtype=torch.int32), listed)
    view, everything = told
    assert (view.rid, view.method, view.unit_size, view.length) == ("r4", "snapkv", 1, 300)
    assert view.units.tolist() == kept.tolist()
    assert (everything.rid, everything.method, everything.unit_size) == ("r7", "full", 16)
    assert everything.units.tolist() == [list(range(13))] * 2
    assert asked == [300, 200]
