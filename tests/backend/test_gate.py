"""Dense or sparse, by what a step saves."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_sparsekv.backend import gate
from sgl_sparsekv.backend.gate import (
    DENSE,
    MEASURED,
    SPARSE,
    BreakEven,
    Cost,
    PredictedCost,
    predicted_cost,
)


@pytest.fixture(autouse=True)
def _active() -> Iterator[None]:
    """No gate outlives its test."""
    before = gate._active
    yield
    gate._active = before


def chosen(saved: int | None, rows: int, views: bool = False) -> BreakEven:
    """A gate at 100 tokens and 4 rows that has seen one step."""
    told = SimpleNamespace(saved_tokens=lambda: saved, keeps_views=views)
    plan: Any = None if saved is None else told
    asked = BreakEven(lambda batch: plan if batch.batch_size == rows else None, 100, 4)
    assert asked.chosen == SPARSE, "before the first step: what is captured first"
    assert asked.select(SimpleNamespace(batch_size=rows)) == asked.chosen
    return asked


@pytest.mark.parametrize(
    ("saved", "rows", "variant"),
    [
        (100, 4, SPARSE),
        (101, 1, SPARSE),
        (99, 4, DENSE),
        (100, 5, DENSE),
        (99, 5, DENSE),
        (None, 1, DENSE),
    ],
)
def test_a_step_is_sparse_where_it_saves_enough_and_fits(
    saved: int | None, rows: int, variant: str
) -> None:
    assert chosen(saved, rows).chosen == variant


def test_a_step_that_leaves_queries_for_a_view_is_sparse_if_it_fits() -> None:
    assert chosen(0, 1, views=True).chosen == SPARSE
    assert chosen(0, 5, views=True).chosen == DENSE


def test_while_both_are_measured_one_is_forced() -> None:
    asked = chosen(100, 1)
    for variant in (DENSE, SPARSE):
        asked.forced = variant
        for rows in (1, 2):
            assert asked.select(SimpleNamespace(batch_size=rows)) == asked.chosen == variant


@pytest.mark.parametrize("due", [False, True])
def test_a_sparse_step_is_measured_where_a_sample_is_due(due: bool) -> None:
    """Never a dense one, and nobody is asked about those."""
    asked: list[int] = []

    def is_due(plan: Any) -> bool:
        asked.append(plan.saved)
        return due

    for saved, variant in ((99, DENSE), (100, MEASURED if due else SPARSE)):
        told = SimpleNamespace(
            saved_tokens=lambda saved=saved: saved, keeps_views=False, saved=saved
        )
        gate: Any = BreakEven(lambda batch, told=told: told, 100, 4, is_due)
        assert gate.select(SimpleNamespace(batch_size=4)) == gate.chosen == variant
    assert asked == [100]


def test_a_third_variant_is_captured_only_where_samples_can_be_due() -> None:
    """Dense comes first: what a sparse graph needs at once has room in it for the others'."""
    assert chosen(100, 1).capture_labels == ("sparsekv_dense", "sparsekv_sparse")
    measuring = BreakEven(lambda batch: None, 100, 4, lambda plan: True)
    assert measuring.capture_labels == (DENSE, SPARSE, "sparsekv_measured")


def card(**properties: float) -> Any:
    """A CUDA device as torch describes it."""
    return SimpleNamespace(type="cuda"), SimpleNamespace(**properties)


@pytest.mark.parametrize(
    ("properties", "bytes_per_second"),
    [
        ({"memory_clock_rate": 2_619_000, "memory_bus_width": 5120}, 2 * 2.619e9 * 640),
        ({"memory_clock_rate": 0, "memory_bus_width": 5120}, gate.USUAL_BANDWIDTH),
        ({"memory_clock_rate": 2_619_000}, gate.USUAL_BANDWIDTH),
        ({"memory_bus_width": 5120}, gate.USUAL_BANDWIDTH),
    ],
)
def test_bandwidth_is_the_drivers_or_the_usual_one(
    properties: dict[str, float], bytes_per_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transfers a clock of `memory_clock_rate` kHz over `memory_bus_width` bits."""
    device, told = card(**properties)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda asked: told if asked is device else None
    )
    assert gate.bandwidth(device) == pytest.approx(bytes_per_second)


def test_what_is_predicted_of_a_card_is_from_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, told = card(memory_clock_rate=10**6, memory_bus_width=64, multi_processor_count=7)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda asked: told if asked is device else None
    )
    assert predicted_cost(8, 4096, device) == PredictedCost(8, 4096, 2e9 * 8, 7)


class Flat(Cost):
    """A thousand tokens, whatever is chosen from."""

    def tokens(self, rows: int, units: int) -> int:
        return 1000


def test_a_context_is_worth_choosing_from_where_it_saves_as_much_as_that_costs() -> None:
    """1,024 tokens less a unit of metadata and a budget of 23: to the token."""
    assert Flat().break_even(1, 23, 2048, 1024) == 1024
    assert Flat().break_even(1, 24, 2048, 1024) is None
    assert Flat().break_even(1, 24, 2048, 2048) == 2048
    assert Flat().break_even(1, 0, 2048, 1023) is None, "no context is as long"


def test_what_predicted_costs_in_tokens() -> None:
    """9 us and 3.5 for each 2048 units, of 3.35 TB/s; never less than a token."""
    cost = predicted_cost(8, 4096, torch.device("cpu"))
    assert cost.tokens(1, 2048) == round(12.5e-6 * 3.35e12 / 4096) == 10_223
    assert cost.tokens(1, 2049) == round(16e-6 * 3.35e12 / 4096)
    assert cost.tokens(33, 2048) == cost.tokens(1, 2048), "264 programs run at once"
    assert cost.tokens(34, 2048) == cost.tokens(1, 2049), "two waves are as two chunks"
    assert predicted_cost(1, 10**9, torch.device("cpu")).tokens(1, 1) == 1


def test_one_head_of_a_large_model_is_chosen_from_later() -> None:
    """With an eighth of the bytes per token, the same launches are worth eight times the tokens."""
    whole, rank = (predicted_cost(n, 512 * n, torch.device("cpu")) for n in (8, 1))
    assert whole.break_even(1, 2048, 16, 131_072) == 13_312
    assert rank.break_even(1, 2048, 16, 131_072) is None
    assert rank.break_even(8, 2048, 16, 131_072) == 13_312


def test_a_step_is_asked_for_what_its_own_rows_cost() -> None:
    cost = PredictedCost(8, 4096, 3.35e12)
    for units, variant in ((2048, SPARSE), (2049, DENSE)):
        plan: Any = SimpleNamespace(
            rows=[3], plan=SimpleNamespace(num_units=torch.tensor([units])),
            keeps_views=False, saved_tokens=lambda: 10_223,
        )  # fmt: skip
        asked = BreakEven(lambda batch, plan=plan: plan, cost, 4)
        assert asked.select(SimpleNamespace(batch_size=1)) == variant


def test_sglang_gets_our_variants_only_where_our_backend_asks() -> None:
    gate.activate_gate(None)
    assert gate.graph_variants("sglang's own", "runner") == "sglang's own"
    assert gate.graph_variants(None) is None
    ours = chosen(100, 1)
    gate.activate_gate(ours)
    assert gate.graph_variants("sglang's own", "runner") is ours
