"""SGLang's layers with our kernels: what they take over, what they leave, and what comes out."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.layer_ops import MOST_ROWS

pytestmark = [
    pytest.mark.usefixtures("sglang_plugins"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
]
DTYPE = torch.bfloat16


class Watched:
    """Reference ops that note which of them ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.ran.append(name)
        return getattr(load_reference(), name)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[type, Any]]]:
    """Forwards that SGLang looks up, empty; put back behind the test."""
    from sglang.kernels.fused_op import BaseFusedOp

    found: dict[str, dict[type, Any]] = {}
    monkeypatch.setattr(BaseFusedOp, "_oot_forward_registry", found)
    yield found


def a_model(dtype: torch.dtype = DTYPE) -> torch.nn.Module:
    """One of each layer, as SGLang makes them; random weights."""
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = torch.nn.Module()
        model.matrix = ReplicatedLinear(64, 96, bias=True)
        model.norm = RMSNorm(64)
        model.gate = SiluAndMul()
        model.rotary = RotaryEmbedding(32, 32, 128, 10000, True, dtype)
        model.head = ParallelLMHead(96, 64, enable_tp=False)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
    return model


def run(model: torch.nn.Module, rows: int) -> list[torch.Tensor]:
    """Every layer, on random rows of the model's dtype."""
    from sglang.srt.layers.logits_processor import LogitsProcessor

    dtype = model.norm.weight.dtype
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype)
    positions = torch.arange(rows)
    processor = SimpleNamespace(use_fp32_lm_head=False, use_fp32_lm_head_output=False)
    processor.rl_on_policy_target = None
    return [
        model.matrix(x)[0],
        model.norm(x),
        *model.norm(x, x.flip(0)),
        model.gate(x),
        *model.rotary(positions, x, x[:, :32]),
        LogitsProcessor._compute_lm_head(processor, x, model.head),
    ]


ALL = ["linear", "norm", "add_norm", "gate", "rotate", "linear"]


@pytest.mark.parametrize("rows", [1, MOST_ROWS, MOST_ROWS + 1, 40])
def test_layers_give_what_sglangs_own_give(rows: int, registry: object) -> None:
    """To within a rounding each; a matrix of many rows is torch's."""
    from sgl_sparsekv.backend.cpu_layers import serve_layers

    want, served, ops = run(a_model(), rows), a_model(), Watched()
    serve_layers(served, ops, positions=128)
    ours = run(served, rows)
    assert ops.ran == [name for name in ALL if name != "linear" or rows <= MOST_ROWS]
    for one, other in zip(ours, want, strict=True):
        assert one.dtype is other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= other.abs().max() * 2**-7


def test_weights_stay_where_they_are(registry: object) -> None:
    """So that whatever loads others writes to what is read."""
    from sgl_sparsekv.backend.cpu_layers import serve_layers

    model = a_model()
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    serve_layers(model, load_reference(), positions=128)
    assert before == {name: weight.data_ptr() for name, weight in model.named_parameters()}
    old = run(model, 2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    new = run(model, 2)
    assert torch.equal(new[0], old[0] * 2) and torch.equal(new[-1], old[-1] * 2)


def test_float32_is_left_to_torch(registry: object) -> None:
    """It reads weights as fast as memory gives them."""
    from sgl_sparsekv.backend.cpu_layers import serve_layers

    want, served, ops = run(a_model(torch.float32), 3), a_model(torch.float32), Watched()
    serve_layers(served, ops, positions=128)
    assert all(map(torch.equal, run(served, 3), want)) and ops.ran == []


def test_variants_of_a_layer_are_left_to_sglang(registry: object) -> None:
    """Norms of another formula, angles in pairs, and what no row of ours is."""
    from sgl_sparsekv.backend.cpu_layers import serve_layers

    def changed(model: torch.nn.Module) -> torch.nn.Module:
        model.norm.cast_x_before_out_mul = True
        model.rotary.is_neox_style = False
        return model

    want, served, ops = run(changed(a_model()), 3), changed(a_model()), Watched()
    serve_layers(served, ops, positions=128)
    got = run(served, 3)
    assert ops.ran == ["linear", "gate", "linear"]
    assert all(map(torch.equal, got[1:4] + got[5:7], want[1:4] + want[5:7]))


def test_a_table_that_is_too_short_is_left_to_sglang(registry: dict[str, dict[type, Any]]) -> None:
    """It stops at a position behind its end, where a kernel would read on."""
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    from sgl_sparsekv.backend.cpu_layers import serve_layers

    serve_layers(a_model(), load_reference(), positions=129)
    assert registry and RotaryEmbedding not in registry["native"]


def test_a_head_in_float32_stays_one(registry: object) -> None:
    """Where SGLang was asked for it."""
    from sglang.srt.layers.logits_processor import LogitsProcessor

    from sgl_sparsekv.backend.cpu_layers import CpuLinearMethod, serve_layers

    model = a_model()
    processor = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(processor)
    processor.use_fp32_lm_head = True
    model.logits_processor, before = processor, model.head.quant_method
    serve_layers(model, load_reference(), positions=128)
    assert model.head.quant_method is before
    assert isinstance(model.matrix.quant_method, CpuLinearMethod)


def test_another_platform_keeps_its_layers(
    monkeypatch: pytest.MonkeyPatch, registry: dict[str, dict[type, Any]]
) -> None:
    """SGLang's own engine for CPUs packs weights for its own kernels."""
    from sglang.srt.platforms.cpu import CpuSRTPlatform

    from sgl_sparsekv.backend import cpu_layers

    model = a_model()
    before = model.matrix.quant_method
    monkeypatch.setattr(cpu_layers, "current_platform", CpuSRTPlatform())
    cpu_layers.serve_layers(model, load_reference(), positions=128)
    assert model.matrix.quant_method is before and registry == {}
