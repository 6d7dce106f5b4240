"""Stock kernels' workspaces: one for each captured batch size, a few for all others."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fused_backend import step_shape
from helpers.host import Host

from sgl_sparsekv.backend import paged
from sgl_sparsekv.backend.paged import EAGER_KEPT, PagedRoute


class Attend:
    """A kernel that remembers what was planned."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def plan(self, counts: Any, tails: Any) -> None:
        """As a stock kernel's."""
        self.planned = counts.tolist()


@pytest.fixture
def route(sglang: None, monkeypatch: pytest.MonkeyPatch) -> PagedRoute:
    """A route whose kernels are counted; one dense layer, so two classes of them."""
    kernel = SimpleNamespace(unsupported=lambda *args: None, create=Attend)
    monkeypatch.setattr(paged, "load_route", lambda name: kernel)
    shape = step_shape(Host("rust", 16, 8, torch.bfloat16, kind="fused"))
    return PagedRoute("fa2", shape, 1, (9, 0))


def test_batches_of_many_sizes_keep_few_workspaces(route: PagedRoute) -> None:
    """Mixed batches may have any number of rows; captured sizes stay whatever comes between."""
    route.plan(8, None, graph=True)
    captured = route.of_layer(0)
    for rows in range(1, 40):
        route.plan(rows, None, graph=False)
        assert route.of_layer(0).shape.rows == rows == len(route.of_layer(1).planned)
        assert not route.of_layer(0).shape.graph
    assert list(route._eager) == [36, 37, 38, 39] and len(route._eager) == EAGER_KEPT
    route.plan(8, None, graph=True)
    assert route.of_layer(0) is captured and captured.shape.graph


def test_a_size_that_comes_again_is_kept_before_others(route: PagedRoute) -> None:
    for rows in (1, 2, 3, 4):
        route.plan(rows, None, graph=False)
    route.plan(1, None, graph=False)
    first = route.of_layer(1)
    route.plan(5, None, graph=False)
    assert list(route._eager) == [3, 4, 1, 5]
    route.plan(1, None, graph=False)
    assert route.of_layer(1) is first


def test_layers_in_which_rows_are_dense_are_planned_apart(route: PagedRoute) -> None:
    plan = SimpleNamespace(
        rows=[5, 6],
        dense_rows=lambda layer: np.array([layer == 0, True]),
        plan=SimpleNamespace(
            num_units=np.array([9, 7]), counts=np.array([4, 4]), tail=np.array([1, 2])
        ),
    )
    route.plan(3, plan, graph=True)
    assert [route.of_layer(n).planned for n in (0, 1, 7)] == [[9, 7, 1], [4, 7, 1], [4, 7, 1]]
