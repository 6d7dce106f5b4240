"""What a GPU's trace tells of rows that select: by unit, and as many as each KV head has read."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sgl_sparsekv.backend.planner import HostPlan
from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.geometry import Geometry


@pytest.mark.parametrize("chosen", [None, torch.tensor([[9, 7], [4, 160]], dtype=torch.int32)])
def test_units_are_told_in_the_rows_own_size_and_number(
    sglang: None, chosen: torch.Tensor | None
) -> None:
    """Of a row that selects whole units, and of one that selects tokens."""
    from sgl_sparsekv.backend.observer import StepObserver

    told: list[Any] = []
    options = [RequestOptions("quest", 144), RequestOptions("clusterkv", 160)]
    observer = StepObserver.__new__(StepObserver)
    observer.trace = SimpleNamespace(publish=told.append)  # type: ignore[assignment]
    observer._plan = HostPlan(np.array([4, 7]), np.array([304, 300]), options, Geometry(64, 16))
    layout = SimpleNamespace(num_kv_heads=2)
    observer.metadata = SimpleNamespace(layout=layout, geometry=Geometry(64, 16))  # type: ignore[assignment]
    observer.table = SimpleNamespace(entry=lambda row: SimpleNamespace(rid=f"r{row}"))  # type: ignore[assignment]
    observer.rank, observer.step = SimpleNamespace(tp=0, dp=0, pp=0), 3  # type: ignore[assignment]
    logical = torch.arange(200, dtype=torch.int32).expand(2, 2, -1) + 1
    observer.watched(1, logical, None, chosen)
    counts = [[9, 9], [160, 160]] if chosen is None else chosen.tolist()
    assert [record.unit_size for record in told] == [16, 1]
    for record, heads in zip(told, counts, strict=True):
        for units, count in zip(record.units, heads, strict=True):
            assert units.tolist() == [*range(1, count + 1), *[-1] * (max(heads) - count)]
