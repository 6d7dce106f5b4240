"""Dense or sparse, by what a step saves."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_sparsekv.backend import gate
from sgl_sparsekv.backend.gate import DENSE, SPARSE, BreakEven


@pytest.fixture(autouse=True)
def _active() -> Iterator[None]:
    """No gate outlives its test."""
    before = gate._active
    yield
    gate._active = before


def chosen(saved: int | None, rows: int) -> BreakEven:
    """A gate at 100 tokens and 4 rows that has seen one step."""
    plan: Any = None if saved is None else SimpleNamespace(saved_tokens=lambda: saved)
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


def test_both_variants_are_captured() -> None:
    assert BreakEven.capture_labels == ("sparsekv_dense", "sparsekv_sparse")


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


def test_what_choosing_costs_in_tokens() -> None:
    """14 us at 3.35 TB/s are 46,900,000 bytes; never less than a token."""
    cpu = torch.device("cpu")
    assert gate.needed_tokens(4096, cpu) == 11_450
    assert gate.needed_tokens(46_900_000, cpu) == 1
    assert gate.needed_tokens(30_000_000, cpu) == 2
    assert gate.needed_tokens(10**9, cpu) == 1


def test_sglang_gets_our_variants_only_where_our_backend_asks() -> None:
    gate.activate_gate(None)
    assert gate.graph_variants("sglang's own", "runner") == "sglang's own"
    assert gate.graph_variants(None) is None
    ours = chosen(100, 1)
    gate.activate_gate(ours)
    assert gate.graph_variants("sglang's own", "runner") is ours
