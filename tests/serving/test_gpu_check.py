"""`sparsekv doctor --gpu`: a layer of the model's shape is judged, and a missing GPU is said."""

import json
from pathlib import Path

import pytest
import torch

from sgl_sparsekv.commands import doctor
from sgl_sparsekv.serving import gpu_check, selftest
from sgl_sparsekv.serving.gpu_check import BUDGET, LENGTHS, Layer, check

CPU = torch.device("cpu")
SMALL = Layer(heads=1, group=2, head_dim=64)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def test_a_layer_is_right_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter; every request is longer than the budget, and that is above 64 tokens."""
    assert min(LENGTHS) > BUDGET > 64
    monkeypatch.setattr(gpu_check, "LENGTHS", (1011, 700))
    assert check(SMALL, CPU).problem == ""
    decode = gpu_check.decode
    monkeypatch.setattr(gpu_check, "decode", lambda *at: decode(*at) * 1.05)
    assert "request 0, head 0: attention errs by" in check(SMALL, CPU).problem

    def other(step: gpu_check.FusedDecode, scene: gpu_check.Scene) -> torch.Tensor:
        scene.q.neg_()
        out = decode(step, scene)
        scene.q.neg_()
        return out

    monkeypatch.setattr(gpu_check, "decode", other)
    assert "request 0, head 0: a better unit was left out" in check(SMALL, CPU).problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_doctor_says_so_in_one_sentence() -> None:
    found = doctor.gpu_finding(None, timeout=120)
    assert found.status == doctor.FAILURE
    assert found.detail == "no NVIDIA GPU was found here, so no kernel was compiled"


def test_the_doctor_asks_for_the_models_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 28, "num_key_value_heads": 4,
              "hidden_size": 3584, "torch_dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = {"gpu": "NVIDIA H200", "problem": "", "compile_seconds": 12.0, "layer_us": 21.5}
    asked: list[tuple[str, ...]] = []

    def probe(module: str, timeout: float, *arguments: str) -> tuple[dict[str, object], str]:
        asked.append(arguments)
        return report, ""

    monkeypatch.setattr(doctor, "_probe", probe)
    found = doctor.gpu_finding(tmp_path, timeout=1.0)
    assert asked == [
        ("--heads", "4", "--group", "7", "--head-dim", "128", "--dtype", "bfloat16")
    ]  # fmt: skip
    assert (
        found.status == doctor.OK and "agrees with the reference and takes 21.5 us" in found.detail
    )
    report["problem"] = "request 0, head 3: a better unit was left out"
    assert doctor.gpu_finding(None, timeout=1.0).status == doctor.FAILURE
    assert doctor.gpu_finding(tmp_path / "no", timeout=1.0).status == doctor.FAILURE


def test_compiled_kernels_are_tested_where_they_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the self-test's tensors lie there; those of the CPU's devices do not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [selftest.home(name).type for name in ("triton", "cpu", "reference")] == [
        "cuda", "cpu", "cpu"
    ]  # fmt: skip
    case = selftest.make_case().to(torch.device("meta"))
    held = [*vars(case).values(), *vars(case.candidates).values()]
    assert {one.device.type for one in held if isinstance(one, torch.Tensor)} == {"meta"}
