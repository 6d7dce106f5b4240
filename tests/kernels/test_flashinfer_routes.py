"""Which stock kernel is taken for what, and one sentence where none can be."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sgl_sparsekv.kernels.flashinfer import choose, limits, routes

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.routes import ROUTES, load_route
from sgl_sparsekv.types import AttendShape

DOCS = Path(__file__).parents[2] / "docs" / "attend_routes.md"
HOPPER = (9, 0)
SHAPE = AttendShape(2, 2, 4, 128, 128, 16, 9, torch.bfloat16, torch.device("cpu"), True)


@pytest.mark.parametrize(
    ("name", "capability", "change", "says"),
    [
        ("fa2", (7, 5), {}, "needs compute capability 8.0 or later"),
        ("fa2", HOPPER, {"head_dim": 96, "v_head_dim": 96}, "needs a head_dim of"),
        ("fa3", (8, 0), {}, "needs compute capability 9.x"),
        ("fa3", (10, 0), {}, "needs compute capability 9.x"),
        ("fa3", HOPPER, {"head_dim": 512, "v_head_dim": 512}, "needs a head_dim of"),
        ("fa2", HOPPER, {"v_head_dim": 64}, "needs V of K's head_dim, got 64 for 128"),
        ("xqa", HOPPER, {"v_head_dim": 64}, "needs V of K's head_dim, got 64 for 128"),
        ("fa3", HOPPER, {"v_head_dim": 64}, "needs V of K's head_dim, or of 104 to 128"),
        ("xqa", (8, 9), {}, "needs compute capability 9, 10 or 12"),
        ("xqa", HOPPER, {"head_dim": 72, "v_head_dim": 72}, "needs a head_dim of"),
        ("xqa", HOPPER, {"group": 65}, "takes at most 64 query heads per KV head"),
        *(
            (name, HOPPER, {"dtype": torch.float32}, "needs a bfloat16 or float16")
            for name in ROUTES
        ),
        *((name, HOPPER, {"unit_size": 8}, "needs units of") for name in ROUTES),
    ],
)
def test_wrong_use_gives_one_sentence(
    name: str, capability: tuple[int, int], change: dict[str, object], says: str
) -> None:
    """At start-up, with the value."""
    with pytest.raises(UnsupportedSetup, match=says) as error:
        choose(replace(SHAPE, **change), capability, name)
    assert "\n" not in str(error.value) and ";" not in str(error.value)


@pytest.mark.parametrize("name", ROUTES)
def test_a_missing_package_gives_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, or not importable on this machine."""
    package = {"fa2": "flashinfer", "fa3": "sgl_kernel", "xqa": "flashinfer"}[name]
    monkeypatch.setitem(sys.modules, f"{package}.decode", None)
    monkeypatch.setitem(sys.modules, f"{package}.flash_attn", None)
    with pytest.raises(UnsupportedSetup, match=f"cannot import {package}"):
        load_route(name).create(SHAPE)
    monkeypatch.setattr(limits, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedSetup, match=f"needs the package '{package}'"):
        choose(SHAPE, HOPPER, name)


def test_the_first_route_that_serves_is_chosen() -> None:
    """And one that is unknown, or none that serves, is an error."""
    assert choose(SHAPE, HOPPER).name == "fa3" and choose(SHAPE, (8, 0)).name == "fa2"
    odd = replace(SHAPE, head_dim=96, v_head_dim=96)
    assert choose(odd, (12, 0)).name == "xqa"
    with pytest.raises(UnsupportedSetup, match=r"fa3.*fa2.*xqa"):
        choose(odd, (8, 0))
    with pytest.raises(ValueError, match="must be one of"):
        choose(SHAPE, HOPPER, "cudnn")
    with pytest.raises(ValueError, match="must be one of"):
        load_route("cudnn")


def test_the_docs_have_the_table() -> None:
    """One text; every route named once, nothing called measured that was not."""
    assert routes.table() in DOCS.read_text()
    assert {case.route for case in routes.CASES} == set(routes.ROUTES) == set(ROUTES)
    for case in routes.CASES:
        measured = case.measured != routes.NOT_MEASURED
        assert measured == (routes.NOT_MEASURED not in routes.ROUTES[case.route].why)
