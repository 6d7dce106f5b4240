"""Sinks, window and budget, and the plan of a step: from lengths and options alone."""

import numpy as np
import pytest
import torch
from helpers.cold import always_kept, units_to_keep
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_sparsekv.backend.held_scores import HeldScores
from sgl_sparsekv.backend.layers import UNBOUNDED, ModelLayers
from sgl_sparsekv.backend.planner import HostPlan, StepPlan
from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.policy import RowOptions, RowPlan, plan_rows
from sgl_sparsekv.types import Ranking

METHODS = ("clusterkv", "full", "mean_std", "oracle", "quest", "shadowkv", "streaming")
GEOMETRY = Geometry(64, 16)
LAYERS = 4


@st.composite
def request_options(draw: st.DrawFn) -> RequestOptions:
    """Options that `RequestOptions` accepts."""
    sink, window = draw(st.integers(0, 40)), draw(st.integers(0, 200))
    least = RequestOptions(sink=sink, window=window, budget=1.0).minimum_budget
    budget: int | float = draw(st.floats(0.01, 1.0))
    if draw(st.booleans()):
        budget = least + draw(st.integers(0, 600))
    return RequestOptions(
        method=draw(st.sampled_from(METHODS)),
        budget=budget,
        sink=sink,
        window=window,
        dense_layers=draw(st.integers(0, LAYERS + 1)),
    )


ROWS = st.lists(st.tuples(st.integers(1, 3000), request_options()), min_size=1, max_size=6)


def unit_of(option: RequestOptions) -> int:
    """Tokens of what the option's method selects."""
    return load_method(option.method).unit_size or 16


@settings(max_examples=500, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_a_row_is_split_into_sinks_candidates_and_window(
    rows: list[tuple[int, RequestOptions]],
) -> None:
    """Against sets of positions; a budget is exact when the context is longer."""
    lengths = np.array([length for length, _ in rows])
    options = [option for _, option in rows]
    own = np.array([unit_of(option) for option in options])
    plan = plan_rows(lengths, RowOptions.resolve(options, lengths), GEOMETRY, own)
    for i, (length, option) in enumerate(rows):
        unit = unit_of(option)
        kept = always_kept(length, option, 16, unit)
        total, count = int(plan.num_units[i]), int(plan.counts[i])
        outside = {u for u in range(total) if not plan.begin[i] <= u < plan.end[i]}
        assert outside == kept
        assert count == units_to_keep(length, option, unit)
        assert len(kept) <= count <= total
        assert bool(plan.dense[i]) == (count == total)
        budget = option.budget_tokens(length)
        assert (count - 1) * unit + plan.tail[i] == plan.attended[i] <= max(budget, 16)
        assert plan.dense[i] == (length <= budget), "budget >= context reads everything"
        assert plan.dense[i] or plan.attended[i] > budget - unit, "one unit more is too many"
        assert unit > 1 or plan.attended[i] == min(budget, length), "tokens meet it exactly"
        assert plan.attended[i] == length or not plan.dense[i]
        sealed = length // 16 * 16
        assert all((u + 1) * unit <= sealed for u in range(plan.begin[i], plan.end[i])), "full"


def own_options(budget: int, sink: int, window: int) -> RowOptions:
    """Of one row, as they come out of `RowOptions.resolve`."""
    return RowOptions(*(np.array([one]) for one in (budget, sink, window)))


@pytest.mark.parametrize(
    ("length", "options", "unit", "begin", "end", "total", "counts", "tail"),
    [
        (1000, (160, 16, 64), 16, 1, 58, 63, 10, 8),
        (1000, (160, 16, 64), 8, 2, 116, 125, 20, 8),
        (1000, (160, 16, 64), 1, 16, 928, 1000, 160, 1),
        (1000, (160, 17, 65), 16, 2, 58, 63, 10, 8),
        (1000, (160, 16, 56), 16, 1, 59, 63, 10, 8),
        (1000, (160, 0, 0), 16, 0, 62, 63, 10, 8),
        (1000, (1, 0, 0), 16, 0, 62, 63, 1, 8),
        (1000, (159, 16, 64), 16, 1, 58, 63, 10, 8),
        (1000, (151, 16, 64), 16, 1, 58, 63, 9, 8),
        (1000, (1000, 16, 64), 16, 1, 58, 63, 63, 8),
        (992, (991, 0, 0), 16, 0, 61, 62, 61, 16),
        (40, (40, 64, 16), 16, 1, 1, 3, 3, 8),
        (16, (160, 16, 0), 16, 0, 0, 1, 1, 16),
        (10, (160, 16, 64), 16, 0, 0, 1, 1, 10),
        (1, (160, 16, 64), 8, 0, 0, 1, 1, 1),
    ],
)
def test_where_candidates_begin_and_end_and_how_many_units_are_kept(
    length: int, options: tuple[int, int, int], unit: int,
    begin: int, end: int, total: int, counts: int, tail: int,
) -> None:  # fmt: skip
    """Of budget, sinks and window in tokens, around the borders of units."""
    units = None if unit == 16 else np.array([unit])
    plan = plan_rows(np.array([length]), own_options(*options), GEOMETRY, units)
    found = (plan.begin, plan.end, plan.num_units, plan.counts, plan.tail, plan.unit_size)
    assert [one.tolist() for one in found] == [[n] for n in (begin, end, total, counts, tail, unit)]
    assert {one.dtype for one in found} == {np.dtype(np.int64)}
    assert plan.dense.tolist() == [counts == total]
    assert plan.attended.tolist() == [(counts - 1) * unit + tail]


def test_a_unit_may_be_a_token() -> None:
    """A window longer than the context is all of it."""
    one, single = RequestOptions(budget=64, sink=4, window=20), Geometry(16, 1)
    plan = plan_rows(np.array([10, 30]), RowOptions.resolve([one] * 2, np.array([10, 30])), single)
    assert plan.begin.tolist() == [0, 4] and plan.end.tolist() == [0, 10]


def test_a_budget_that_cannot_hold_what_is_always_kept_is_a_mistake_of_ours() -> None:
    """As is a unit that no server's unit holds whole; options are checked long before."""
    with pytest.raises(AssertionError, match=r"^budget below sinks \+ window"):
        plan_rows(np.array([1000]), own_options(64, 16, 64), GEOMETRY)
    with pytest.raises(AssertionError, match=r"^a method's unit must divide the server's"):
        plan_rows(np.array([1000]), own_options(160, 16, 64), GEOMETRY, np.array([12]))


def test_rows_that_keep_everything_count_in_the_unit_they_are_told() -> None:
    plan = RowPlan.everything(np.array([1, 16, 17, 400]), 16)
    assert plan.counts.tolist() == plan.num_units.tolist() == [1, 1, 2, 25]
    assert plan.tail.tolist() == [1, 16, 1, 16] and plan.unit_size.tolist() == [16] * 4
    assert plan.begin.tolist() == plan.end.tolist() == [0] * 4
    assert plan.dense.tolist() == [True] * 4 and plan.dense.dtype == bool
    assert plan.attended.tolist() == [1, 16, 17, 400]


def test_options_of_no_rows_are_arrays_of_whole_numbers() -> None:
    """numpy makes an empty list one of floats, which can index nothing."""
    nobody = np.zeros(0, dtype=np.int64)
    found = RowOptions.resolve([], nobody)
    assert {one.dtype for one in (found.budget, found.sink, found.window)} == {nobody.dtype}
    plan = HostPlan(nobody, nobody, [], GEOMETRY).plan
    assert {one.dtype for one in (plan.unit_size, plan.counts, plan.begin)} == {nobody.dtype}


def test_a_ratio_becomes_tokens_of_the_row() -> None:
    """A share of the context, never below sinks, window and tail."""
    options = RequestOptions(budget=0.25, sink=16, window=64)
    assert options.budget_tokens(4096) == 1024
    assert options.budget_tokens(100) == options.minimum_budget == 96
    lengths = np.array([4096, 100])
    plan = plan_rows(lengths, RowOptions.resolve([options] * 2, lengths), GEOMETRY)
    assert plan.counts.tolist() == [64, 6]
    assert plan.dense.tolist() == [False, False]


@pytest.mark.parametrize("length", (960, 961, 975, 976))
@pytest.mark.parametrize("share", (1.0, None))
def test_a_budget_of_the_whole_context_reads_everything(length: int, share: float | None) -> None:
    """Also where the context does not end with a unit."""
    options = [RequestOptions(budget=share or length)]
    lengths = np.array([length])
    plan = plan_rows(lengths, RowOptions.resolve(options, lengths), GEOMETRY)
    assert plan.dense.tolist() == [True] and plan.attended.tolist() == [length]


def make_plan(rows: list[tuple[int, RequestOptions]]) -> StepPlan:
    """A plan of rows that lie on pages of their own."""
    width = 3072
    table = torch.arange(64, 64 + 8 * width, dtype=torch.int32).view(8, width)
    lengths = np.array([length for length, _ in rows], dtype=np.int64)
    places = np.arange(len(rows), dtype=np.int64)[::-1].copy()
    return StepPlan(places, lengths, [option for _, option in rows], table, GEOMETRY)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_groups_cover_every_row_once_in_every_layer(
    rows: list[tuple[int, RequestOptions]],
) -> None:
    """Whatever options a batch mixes, and a dense group reads everything."""
    plan = make_plan(rows)
    for layer in range(LAYERS + 2):
        covered: list[int] = []
        for group in plan.groups(layer):
            where = group.index.tolist()
            covered += where
            for i, place in enumerate(where):
                length, option = rows[place]
                dense = option.method == "full" or layer < option.dense_layers
                dense = dense or option.budget_tokens(length) >= length
                name = None if group.method is None else group.method.name
                assert name == (None if dense else option.method)
                unit = 16 if dense else unit_of(option)
                total = -(-length // unit)
                assert int(group.num_units[i]) == total
                wanted = total if dense else units_to_keep(length, option, unit)
                assert group.unit_size == unit and int(group.counts[i]) == wanted
                assert int(group.tails[i]) == (length - 1) % unit + 1
                row = int(plan.rows[place])
                first = (64 + row * 3072) // unit
                table = group.candidates.unit_table[i, :total].tolist()
                assert table == list(range(first, first + total))
        assert sorted(covered) == list(range(len(rows)))
        assert len({tuple(g.index.tolist()) for g in plan.groups(layer)}) == len(plan.groups(layer))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_units_to_make_sure_of_are_the_candidates(rows: list[tuple[int, RequestOptions]]) -> None:
    """Of rows whose method reads page metadata in some layer, and no others."""
    plan = make_plan(rows)
    needed = set(plan.needed_units().tolist())
    scored: set[int] = set()
    for layer in range(max(LAYERS + 2, plan.max_dense_layers + 1)):
        for group in plan.groups(layer):
            if group.method is not None and group.method.summaries:
                spans = zip(group.candidates.begin, group.candidates.end, strict=True)
                for i, (begin, end) in enumerate(spans):
                    own = group.candidates.unit_table[i, begin:end] * group.unit_size
                    scored |= set((own // 16).tolist())
    assert scored <= needed
    assert needed == scored


def test_a_plan_depends_on_lengths_and_options_only() -> None:
    """The same lengths give the same counts whatever lies in the row table."""
    rows = [(700, RequestOptions(budget=256)), (90, RequestOptions(budget=256))]
    plans = [make_plan(rows), make_plan(rows)]
    plans[1].unit_table += 1
    counts = [[g.counts.tolist() for g in plan.groups(3)] for plan in plans]
    assert counts[0] == counts[1]


def test_tokens_read_are_counted_over_all_layers() -> None:
    """Dense layers read everything, the others the budget."""
    plan = make_plan([(1000, RequestOptions(budget=160, dense_layers=1)), (40, RequestOptions())])
    everywhere = ModelLayers(range(LAYERS), [UNBOUNDED] * LAYERS, [True] * LAYERS)
    read, there = plan.attended(everywhere)
    assert read.tolist() == [1000 + 3 * (9 * 16 + 8), 4 * 40]
    assert there.tolist() == [4000, 160]


def test_layers_of_sglang_read_all_they_can_see() -> None:
    """A window is read whole and no more; a layer with its own rules reads the context."""
    rows = [(1000, RequestOptions(budget=160, dense_layers=1)), (40, RequestOptions())]
    windowed = ModelLayers(range(4), [64, 64, UNBOUNDED, UNBOUNDED], [False, False, True, False])
    read, there = make_plan(rows).attended(windowed)
    assert read.tolist() == [2 * 64 + (9 * 16 + 8) + 1000, 4 * 40]
    assert there.tolist() == [2 * 64 + 2 * 1000, 4 * 40]
    first_two = [(1000, RequestOptions(budget=160, dense_layers=3))]
    assert make_plan(first_two).attended(windowed)[0].tolist() == [2 * 64 + 2 * 1000]


def test_dense_layers_are_counted_over_pipeline_stages() -> None:
    """Stages count alike, each over all of them."""
    rows = [(1000, RequestOptions(budget=160, dense_layers=1))]
    stages = [ModelLayers(some, [UNBOUNDED] * 2, [True] * 2) for some in ((0, 1), (2, 3))]
    parts = [ModelLayers(one.numbers.tolist(), one.reach.tolist(), [True] * 2) for one in stages]
    for stage, last in zip(stages, (1, 3), strict=True):
        stage.join(parts)
        assert make_plan(rows).attended(stage)[0].tolist() == [1000 + 3 * (9 * 16 + 8)]
        assert stage.last == stage.last_ours == last
    assert make_plan(rows).dense_rows(2).tolist() == [False], "a later stage starts no new count"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_a_saving_is_what_is_not_read_less_the_metadata_that_is(
    rows: list[tuple[int, RequestOptions]],
) -> None:
    """Row by row, and nothing where choosing costs more than it saves."""
    expected = 0
    for length, option in rows:
        kept = units_to_keep(length, option, unit_of(option))
        if option.method == "full" or kept == -(-length // unit_of(option)):
            continue
        read = (kept - 1) * unit_of(option) + (length - 1) % unit_of(option) + 1
        expected += max(0, length - read - length // 16)
    assert make_plan(rows).saved_tokens() == expected


def test_metadata_has_its_price() -> None:
    """62 full units of 1000 tokens weigh as much as the K and V of 62 tokens."""
    plan = make_plan([(1000, RequestOptions(budget=160))])
    assert plan.saved_tokens() == 1000 - (9 * 16 + 8) - 62
    dear = make_plan([(321, RequestOptions(budget=320)), (1000, RequestOptions(budget=160))])
    assert dear.saved_tokens() == plan.saved_tokens(), "a row that loses takes nothing from others"


def test_a_step_without_rows_reads_nothing() -> None:
    """An idle rank plans one beside ranks that have requests."""
    nobody = np.zeros(0, dtype=np.int64)
    plan = HostPlan(nobody, nobody, [], GEOMETRY)
    everywhere = ModelLayers(range(LAYERS), [UNBOUNDED] * LAYERS, [True] * LAYERS)
    assert plan.saved_tokens() == 0 and not len(plan.dense_rows(0))
    assert [part.tolist() for part in plan.attended(everywhere)] == [[], []]


@pytest.mark.parametrize("every", (2, 3, 8))
def test_held_scores_are_used_for_r_steps(every: int) -> None:
    """One selection serves `every` steps of a row that goes on, and no other row or length."""
    held, taken = HeldScores(), []
    for length in range(100, 100 + 4 * every):
        held.begin_step(1, 7, length, every)
        if not held.holds(1, 0):
            held.store(1, 0, Ranking(torch.full((2, 6), float(length)), torch.zeros(2)))
            taken.append(length)
    assert taken == list(range(100, 100 + 4 * every, every))


def test_held_scores_end_with_their_request() -> None:
    """Another request on the row, a shorter context, a jump ahead, or `every` 1: scored anew."""
    for who, length, every in ((8, 101, 4), (7, 99, 4), (7, 104, 4), (7, 101, 1)):
        held = HeldScores()
        held.begin_step(1, 7, 100, 4)
        held.store(1, 0, Ranking(torch.zeros(2, 6), torch.zeros(2)))
        held.begin_step(1, who, length, every)
        assert not held.holds(1, 0)


def test_held_scores_rank_new_units_last() -> None:
    """Units that filled since the selection have no score; a shorter table is cut."""
    held = HeldScores()
    held.begin_step(1, 7, 100, 4)
    scores, lowest = torch.randn(2, 6), torch.tensor([-1.0, -2.0])
    held.store(1, 0, Ranking(scores, lowest))
    wide, narrow = (Ranking(torch.zeros(2, n), torch.zeros(2)) for n in (8, 5))
    held.load(1, 0, wide)
    held.load(1, 0, narrow)
    assert torch.equal(wide.scores[:, :6], scores) and bool(
        (wide.scores[:, 6:] == -torch.inf).all()
    )
    assert torch.equal(narrow.scores, scores[:, :5])
    assert torch.equal(wide.lowest, lowest) and torch.equal(narrow.lowest, lowest)
    assert not held.holds(1, 1), "layers are held one by one"
