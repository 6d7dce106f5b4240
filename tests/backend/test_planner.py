"""What the host decides of a decode step before any kernel runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sgl_sparsekv.backend.layers import UNBOUNDED, ModelLayers
from sgl_sparsekv.backend.planner import HostPlan, StepPlan
from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.types import KeptUnits

UNIT = 16
SPARSE = RequestOptions(method="quest", budget=64, sink=16, window=16, dense_layers=1)
DENSE = RequestOptions(method="full")


def lengths(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int64)


def host_plan(options: list[RequestOptions], *tokens: int) -> HostPlan:
    return HostPlan(np.arange(len(tokens)), lengths(*tokens), options, Geometry(UNIT, UNIT))


def step_plan(options: list[RequestOptions], *tokens: int, device: str = "cpu") -> StepPlan:
    """Rows 2 and on; row `i` of the pool holds slots from `1024 * i` on."""
    slots = 1024 * torch.arange(8)[:, None] + torch.arange(512)
    rows, pool = np.arange(len(tokens)) + 2, slots.to(device, torch.int32)
    return StepPlan(rows, lengths(*tokens), options, pool, Geometry(UNIT, UNIT))


def test_what_is_saved_pays_for_page_metadata_and_is_never_negative() -> None:
    """Of 328 tokens 3 units and the tail of 8 are read, and 20 full units cost a token each."""
    assert host_plan([SPARSE], 328).saved_tokens() == 328 - (3 * UNIT + 8) - 328 // UNIT
    wide = replace(SPARSE, budget=384)
    assert host_plan([wide], 400).saved_tokens() == 0
    assert host_plan([SPARSE, DENSE, SPARSE, wide], 328, 5000, 328, 400).saved_tokens() == 2 * 252


def test_a_row_whose_method_keeps_views_reads_everything_until_it_has_one() -> None:
    """And what its view lists from then on, even where the budget holds all of a row."""
    viewed, wide = replace(SPARSE, method="snapkv"), replace(SPARSE, method="snapkv", budget=4096)
    options, tokens = [viewed, viewed, wide, SPARSE], lengths(328, 328, 328, 328)
    slots = torch.arange(4 * 512, dtype=torch.int32).view(4, 512)
    for narrowed, dense in (
        (None, [True, True, True, False]),
        ([True, False, True, False], [False, True, False, False]),
    ):
        for plan in (
            HostPlan(np.arange(4), tokens, options, Geometry(UNIT, UNIT), narrowed),
            StepPlan(np.arange(4), tokens, options, slots, Geometry(UNIT, UNIT), narrowed),
        ):
            assert plan.dense_rows(1).tolist() == dense
            assert plan.adaptive.tolist() == [True, True, True, False]
            assert plan.keeps_views


def test_a_row_reads_everything_in_its_first_layers_or_in_all() -> None:
    """By the layer's number; below its budget a row is dense in every layer."""
    plan = host_plan([SPARSE, DENSE, replace(SPARSE, dense_layers=3), SPARSE], 328, 328, 328, 64)
    assert plan.max_dense_layers == 3
    dense = [plan.dense_rows(layer).tolist() for layer in range(4)]
    assert dense[0] == [True] * 4
    assert dense[1] == dense[2] == [False, True, True, True]
    assert dense[3] == [False, True, False, True]


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_rows_that_read_alike_are_one_group_on_the_pools_device(device: str) -> None:
    """Rows of `quest` and of `clusterkv`, whose unit is a token, and one that reads all."""
    tokens = replace(SPARSE, method="clusterkv")
    plan = step_plan([SPARSE, DENSE, tokens, SPARSE], 328, 40, 200, 100, device=device)
    groups = plan.groups(1)
    assert [group.method and group.method.name for group in groups] == ["quest", None, "clusterkv"]
    assert plan.groups(2) is groups, "made once for all layers that are alike"
    assert [group.unit_size for group in groups] == [UNIT, UNIT, 1]
    assert not any(group.whole for group in groups)
    widths = [group.candidates.unit_table.shape for group in groups]
    assert widths == [(2, 21), (1, 3), (1, 200)], "as wide as the longest row of the group"
    for group in groups:
        indices = (group.candidates.begin, group.candidates.end, group.num_units)
        for one in (*indices, group.counts, group.tails):
            assert one.device.type == device and one.dtype == torch.int32
        assert group.index.device.type == device and group.index.dtype == torch.int64
    needed = plan.needed_units()
    assert needed.device.type == device and needed.dtype == torch.int64


def test_what_groups_say_of_their_rows() -> None:
    tokens = replace(SPARSE, method="clusterkv")
    quest, dense, single = step_plan([SPARSE, DENSE, tokens, SPARSE], 328, 40, 200, 100).groups(1)
    assert quest.index.tolist() == [0, 3] and dense.index.tolist() == [1]
    assert quest.num_units.tolist() == [21, 7] and dense.num_units.tolist() == [3]
    assert quest.counts.tolist() == [4, 4] and quest.tails.tolist() == [8, 4]
    assert (dense.counts.tolist(), dense.tails.tolist()) == ([3], [8])
    assert quest.candidates.begin.tolist() == [1, 1] and quest.candidates.end.tolist() == [19, 5]
    assert dense.candidates.begin.tolist() == dense.candidates.end.tolist() == [0]
    assert (single.counts.tolist(), single.tails.tolist()) == ([64], [1])
    assert (single.candidates.begin.tolist(), single.candidates.end.tolist()) == ([16], [176])
    first = 2048 // UNIT
    assert quest.candidates.unit_table[0].tolist() == list(range(first, first + 21))
    assert single.candidates.unit_table[0].tolist() == list(range(4096, 4296))
    rows = torch.arange(4)
    assert quest.take(rows).tolist() == [0, 3] and quest.records is None


def test_in_its_dense_layers_a_row_keeps_every_unit() -> None:
    """Whatever its method would keep, in the server's unit."""
    tokens = replace(SPARSE, method="clusterkv")
    (group,) = step_plan([SPARSE, tokens, DENSE], 328, 200, 40).groups(0)
    assert group.whole and group.method is None and group.unit_size == UNIT
    assert group.counts.tolist() == group.num_units.tolist() == [21, 13, 3]
    assert group.tails.tolist() == [8, 8, 8] and group.records is None
    assert group.candidates.begin.tolist() == group.candidates.end.tolist() == [0, 0, 0]


def test_a_group_of_all_rows_takes_them_as_they_are() -> None:
    plan = step_plan([SPARSE, SPARSE], 328, 200)
    plan.records["quest"] = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    (group,) = plan.groups(1)
    rows = torch.arange(2)
    assert group.whole and group.take(rows) is rows and group.records is plan.records["quest"]
    assert group.candidates.unit_table is plan.unit_table and plan.unit_table.shape == (2, 21)


def test_a_group_gets_the_records_of_its_rows() -> None:
    plan = step_plan([DENSE, SPARSE], 328, 200)
    plan.records["quest"] = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    dense, sparse = plan.groups(1)
    assert dense.records is None and sparse.records is not None
    assert sparse.records.tolist() == [[3, 4]]


def test_full_units_that_may_be_scored_are_needed_and_no_others() -> None:
    """Units 1 to 18 of the row of `quest`; `streaming` reads no metadata, a dense row none."""
    by_place = replace(SPARSE, method="streaming")
    plan = step_plan([SPARSE, DENSE, by_place], 328, 328, 328)
    first = 2048 // UNIT
    assert plan.needed_units().tolist() == list(range(first + 1, first + 19))
    chunks = step_plan([replace(SPARSE, method="shadowkv")], 328)
    assert chunks.needed_units().tolist() == list(range(first + 1, first + 19))
    nothing = step_plan([DENSE, by_place], 328, 328, device="meta").needed_units()
    assert nothing.shape == (0,) and nothing.dtype == torch.int64 and nothing.device.type == "meta"
    assert plan.reads("quest").tolist() == [True, False, False]
    assert plan.reads("streaming").tolist() == [False, False, True]
    assert plan.reads("full").tolist() == [False] * 3, "it chooses nothing"
    assert plan.reads("quest").dtype == bool


ADAPTIVE = replace(SPARSE, coverage=0.5)


def test_what_keys_decide_is_left_out_of_what_a_plan_counts() -> None:
    """A row that asks for coverage reads it all where it is dense, and counts by data elsewhere."""
    layers = ModelLayers(range(3), [UNBOUNDED] * 3, [True] * 3)
    options = [SPARSE, ADAPTIVE, ADAPTIVE, replace(DENSE, coverage=0.5)]
    plan = host_plan(options, 328, 328, 64, 328)
    attended, there = plan.attended(layers)
    assert there.tolist() == [3 * 328, 3 * 328, 3 * 64, 3 * 328]
    assert attended.tolist() == [328 + 2 * 56, 328, 3 * 64, 3 * 328]


def test_rows_with_a_goal_are_a_group_of_their_own() -> None:
    """What they ask for, and what they read in any case; other rows have neither."""
    pooled = replace(SPARSE, budget_split="heads")
    plan = step_plan([SPARSE, ADAPTIVE, pooled], 328, 328, 200)
    (dense,) = plan.groups(0)
    assert dense.method is None and dense.goal is None
    even, aimed = plan.groups(1)
    assert even.goal is None and even.kept is None and even.index.tolist() == [0]
    assert aimed.goal is not None and aimed.kept is not None
    assert aimed.goal.coverage.tolist() == [0.5, 1.0] and aimed.goal.pooled.tolist() == [0, 1]
    assert aimed.goal.coverage.dtype == torch.float32 and aimed.goal.pooled.dtype == torch.int32
    of = KeptUnits.of(aimed.candidates, aimed.num_units)
    assert torch.equal(aimed.kept.table, of.table) and torch.equal(aimed.kept.counts, of.counts)


def test_rows_that_estimate_get_records_of_what_they_leave_out() -> None:
    """Where there are any; a dense layer leaves nothing out."""
    estimating = replace(SPARSE, estimate=True)
    rest = torch.tensor([[1], [2], [3]], dtype=torch.int32)
    plan = step_plan([SPARSE, estimating, DENSE], 328, 328, 328)
    assert all(group.rest is None for group in plan.groups(1))
    plan = step_plan([SPARSE, estimating, DENSE], 328, 328, 328)
    plan.rest = rest
    assert [group.rest for group in plan.groups(0)] == [None]
    exact, estimated, dense = (group.rest for group in plan.groups(1))
    assert exact is None and dense is None
    assert estimated is not None and estimated.tolist() == [[2]]
    alone = step_plan([estimating] * 3, 328, 328, 328)
    alone.rest = rest
    assert [group.rest for group in alone.groups(1)] == [rest]
