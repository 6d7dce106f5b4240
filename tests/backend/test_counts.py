"""What a response says was read is what kernels read, ours and SGLang's, layer by layer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import steps as helpers_steps
from helpers.fused_backend import DenseStub
from helpers.host import Host
from helpers.scenarios import PAGE, PAGES, SPARSE, prompt
from helpers.toy_model import HEADS, LAYERS

from sgl_sparsekv.backend import observer
from sgl_sparsekv.backend.layers import ModelLayers
from sgl_sparsekv.backend.ranks import Rank
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.serving.metrics import ServingMetrics
from sgl_sparsekv.types import per_head

WINDOW = 40
"""Tokens that a layer of the model looks back, the current one included."""


@pytest.fixture
def host(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A scheduler whose model has a sliding window in layer 0, which SGLang serves."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    host, plain = Host("rust", PAGE, PAGES), helpers_steps.attention_layer

    def windowed(layer: int) -> Any:
        module = plain(layer)
        module.sliding_window_size = WINDOW - 1 if layer == 0 else -1
        return module

    monkeypatch.setattr(helpers_steps, "attention_layer", windowed)
    runner = SimpleNamespace(
        device="cpu", req_to_token_pool=host.row_pool, token_to_kv_pool=host.pool,
        server_args=SimpleNamespace(enable_metrics=False),
    )  # fmt: skip
    backend, stub = host.backend, DenseStub(host)
    monkeypatch.setattr(stub, "forward_decode", TorchNativeAttnBackend(runner).forward_decode)
    backend.dense, backend.layers = stub, ModelLayers.of(windowed(n) for n in range(LAYERS))
    metrics = ServingMetrics()
    monkeypatch.setattr(observer, "process_metrics", lambda prometheus: metrics)
    monkeypatch.setattr(observer, "own_rank", lambda: Rank(0, 0, 0, 0, True))
    backend.observer = observer.StepObserver(
        host.options, backend.ops, host.metadata, backend.table, backend.layers, runner
    )
    return host


@pytest.fixture
def read(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Tokens that every attention kernel reads, per row, as a mean over KV heads."""
    from sglang.srt.layers.attention import torch_native_backend

    seen: list[float] = []

    def unseen(looked_at: Callable[..., Any]) -> Callable[..., Any]:
        """To choose by: sinks and window, which the attend that follows reads, and a sample."""

        def weighed(*args: Any) -> Any:
            before = len(seen)
            result = looked_at(*args)
            del seen[before:]
            return result

        return weighed

    for name in ("known", "sample"):
        monkeypatch.setattr(host.backend.ops, name, unseen(getattr(host.backend.ops, name)))
    ours, theirs = host.backend.ops.attend, torch_native_backend.scaled_dot_product_attention

    def attend(*args: Any) -> Any:
        counts, tails, unit = args[4], args[5], args[7]
        heads = per_head(counts, HEADS).double()
        seen.extend(((heads - 1) * unit + tails[:, None]).mean(-1).tolist())
        assert args[3].shape[1] == HEADS
        return ours(*args)

    def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
        mask = how["attn_mask"]
        seen.append(k.shape[-2] if mask is None else int(mask.sum()))
        result: torch.Tensor = theirs(q, k, v, **how)
        return result

    monkeypatch.setattr(host.backend.ops, "attend", attend)
    monkeypatch.setattr(torch_native_backend, "scaled_dot_product_attention", dense)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        SPARSE,
        SPARSE | {"method": "full"},
        SPARSE | {"dense_layers": 2},
        SPARSE | {"coverage": 0.6, "budget": 1.0},
        SPARSE | {"coverage": 0.6, "budget": 0.9},
        SPARSE | {"budget_split": "heads"},
    ],
)
def test_a_window_is_counted_as_what_it_reads(
    host: Host, read: list[float], options: dict[str, Any]
) -> None:
    """In the request's report and in the metrics; layers of ours as the request asked."""
    live = host.start(prompt(2), options)
    host.prefill([live], 1000)
    del read[:]
    steps = PAGE + 3
    for _ in range(steps):
        host.decode([live])
    report = host.backend.table.entry(live.row).report()
    # What is read beside the first step, to tell what a coverage got, is not counted.
    told = report["telemetry"]
    samples = told["sampled_steps"] * told["sampled_layers"] if told else 0
    assert len(read) == steps * LAYERS + samples and read.count(WINDOW) >= steps
    counted = sum(read) - samples * (live.length - steps + 1)
    assert report["decode_steps"] == steps and report["tokens_attended"] == round(counted)
    lengths = range(live.length - steps + 1, live.length + 1)
    assert report["tokens_in_context"] == sum(lengths) + steps * WINDOW
    counters = host.backend.observer.metrics.snapshot()
    assert counters["tokens_attended_total"] == counted
    assert counters["tokens_in_context_total"] == report["tokens_in_context"]


def test_a_model_of_windows_alone_is_refused(host: Host) -> None:
    """Nothing of it could be sparse, and no response may say that something was."""
    module = helpers_steps.attention_layer(0)
    with pytest.raises(UnsupportedSetup, match="no layer of this model can be sparse"):
        ModelLayers.of([module, module])
