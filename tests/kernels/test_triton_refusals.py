"""What the Triton device refuses: one sentence each, which says what to do."""

import pytest
import torch
from sgl_sparsekv.kernels.triton import launch, load
from sgl_sparsekv.kernels.triton.launch import check_machine, check_shape
from triton_kit import SUMMARIES
from triton_scene import Request, make_scene

from sgl_sparsekv.errors import UnsupportedOnDevice, UnsupportedSetup
from sgl_sparsekv.summaries import PageSummary


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message, checked to be one line."""
    said = str(error.value)
    assert len(said.splitlines()) == 1 and len(said) < 200
    return said


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if no interpreter had been asked for."""
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    return monkeypatch


def test_no_gpu(compiled: pytest.MonkeyPatch) -> None:
    compiled.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedSetup) as error:
        load()
    said = sentence(error)
    assert "needs an NVIDIA GPU and none was found" in said and "--sparsekv-device cpu" in said


@pytest.mark.parametrize("found,refused", [((7, 5), True), ((8, 0), False), ((12, 1), False)])
def test_old_gpus(compiled: pytest.MonkeyPatch, found: tuple[int, int], refused: bool) -> None:
    compiled.setattr(torch.cuda, "is_available", lambda: True)
    compiled.setattr(launch, "capability", lambda: found)
    if not refused:
        check_machine()
        return
    with pytest.raises(UnsupportedSetup) as error:
        check_machine()
    said = sentence(error)
    assert "8.0 or newer, this GPU has 7.5" in said and "--sparsekv-device reference" in said


@pytest.mark.parametrize("dims", [(72, 128), (128, 512)])
def test_head_sizes_without_a_kernel(dims: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedSetup) as error:
        check_shape(*dims, torch.bfloat16)
    wrong = {72: "head_dim", 512: "v_head_dim"}[dims[0] if dims[0] == 72 else dims[1]]
    assert f"serves {wrong} 64, 80" in sentence(error)
    assert "--sparsekv-device reference" in sentence(error)


def test_element_types_without_a_kernel() -> None:
    with pytest.raises(UnsupportedSetup) as error:
        check_shape(128, 128, torch.float8_e4m3fn)
    assert "float8_e4m3fn" in sentence(error) and "--kv-cache-dtype auto" in sentence(error)


def test_buffers_of_a_shape_that_is_not_served_are_not_made() -> None:
    scene = make_scene([Request(40)], dim=72)
    with pytest.raises(UnsupportedSetup):
        load().fused(scene.shape)


def test_summaries_without_a_kernel() -> None:
    known = SUMMARIES["min_max"]
    other = PageSummary("median", known.planes, known.summarise, known.score)
    nothing = torch.zeros(0)
    for op, call in (
        ("summarise", lambda: load().summarise(other, nothing, nothing, nothing)),
        ("score", lambda: load().score(other, nothing, nothing, None, 1.0, None)),
    ):
        with pytest.raises(UnsupportedOnDevice) as error:
            call()
        assert all(word in sentence(error) for word in ("median", op, "triton"))
