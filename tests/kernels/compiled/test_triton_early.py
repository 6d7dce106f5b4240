"""Launches that start while the ones in front of them end: who asks for it, and where."""

from importlib import import_module

import pytest
from sgl_sparsekv.kernels.triton import fused, launch, tuning
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.harvest.compile import hollow
from bench.gpu.harvest.launches import recorded
from bench.gpu.harvest.points import EARLY
from bench.gpu.shapes import TOY, Shape
from bench.gpu.variants import made


def test_nowhere_before_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never on a GPU that cannot."""
    assert not any(tuning.starts_early(arch) for arch in tuning.TUNING), "not measured yet"
    monkeypatch.setattr(tuning, "STARTS_EARLY", {(9, 0): True, (12, 0): False})
    asked = ((8, 0), (8, 9), (9, 0), (10, 3), (12, 0), (12, 1))
    assert [arch for arch in asked if tuning.starts_early(arch)] == [(9, 0), (10, 3)]


def test_a_machine_that_can_is_told_so_with_every_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter has no wait, so it never is."""
    monkeypatch.setattr(tuning, "STARTS_EARLY", {(9, 0): True})
    monkeypatch.setattr(launch, "capability", lambda: (9, 0))
    assert launch.early() == {}
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    assert launch.early() == {"EARLY": True, "launch_pdl": True}
    monkeypatch.setattr(launch, "capability", lambda: (8, 9))
    assert launch.early() == {}


def test_all_launches_of_a_layer_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did not wait would break the chain: what is behind it waits for it alone."""
    monkeypatch.setattr(fused, "early", lambda: {"EARLY": True, "launch_pdl": True})
    step = hollow(TritonOps(), TOY, Shape(320, 2), 16, 20)
    with recorded() as found:
        step.once(0)
        step.decode(0)
    early = {
        one.kernel.fn.__name__: (one.constants.get("EARLY"), one.constants.get("launch_pdl"))
        for one in found
    }
    layer = dict.fromkeys(("score_kernel", "select_kernel", "attend_kernel"), (True, True))
    once = dict.fromkeys(("forget_kernel", "begin_kernel", "seal_kernel"), (None, None))
    assert early == {**layer, **once}


def test_the_candidate_is_todays_table_turned_on() -> None:
    """The same kernels, told to start early wherever that can be."""
    package = type(made(EARLY)).__module__.rpartition(".")[0]
    table = import_module(f"{package}.tuning")
    assert [table.starts_early(arch) for arch in ((8, 9), (9, 0), (10, 0), (12, 0))] == [
        False, True, True, True
    ]  # fmt: skip
