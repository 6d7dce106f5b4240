"""What a GPU server refuses or says at start, in one sentence (no GPU is needed to refuse)."""

import logging
from types import SimpleNamespace

import pytest
import torch
from helpers.fused_backend import step_shape
from helpers.host import Host

from sgl_sparsekv.config import (
    RequestOptions,
    ServerOptions,
    check_page_size,
    parse_request_options,
)
from sgl_sparsekv.config import parse_server_options as parse
from sgl_sparsekv.errors import ConfigError, RequestOptionError, UnsupportedSetup


def one_sentence(error: BaseException) -> str:
    """The message; it must be short and on one line."""
    text = str(error)
    assert "\n" not in text and len(text) < 250
    return text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"device": "cuda"}, "device must be one of auto, cpu, reference, triton"),
        ({"attend": "fa4"}, "attend must be one of triton, fa2, fa3, xqa"),
        ({"unit_size": 48}, "unit_size must be one of 16, 32, 64"),
        ({"unit_size": True}, "unit_size must be an integer"),
        ({"unit_size": 64, "budget": 128}, "budget must be at least 192 tokens"),
        ({"dense_below": "never"}, 'dense_below must be "auto" or "predicted"'),
        (
            {"device": "triton", "attend": "xqa", "reselect_every": 4},
            "attend must be triton with reselect_every above 1, got xqa",
        ),
        ({"device": "triton", "admit_packed": True}, "rows are packed on a CPU only"),
        (
            {"device": "triton", "measure": True, "attend": "fa3"},
            "must be false with a stock kernel",
        ),
        ({"device": "triton", "telemetry": True, "attend": "fa2"}, "got attend fa2"),
        (
            {"device": "triton", "attend": "fa2", "method": "snapkv"},
            "attend must be triton with method snapkv, whose KV heads read different numbers",
        ),
        ({"device": "triton", "reduction": "max"}, "reduction max has no kernels on device triton"),
        ({"pq_segment": 1000}, "pq_segment must be a multiple of 64 tokens, got 1000"),
        ({"cluster_segment": 0}, "cluster_segment must be an integer in [64, 16384], got 0"),
        ({"tokens_per_centroid": 1}, "tokens_per_centroid must be at least 2 in segments of 512"),
        ({"pq_subspaces": 3}, "pq_subspaces must be one of 1, 2, 4, 8, 16, got 3"),
        ({"pq_bits": 9}, "pq_bits must be an integer in [1, 8], got 9"),
    ],
)
def test_options_that_no_server_takes(values: dict[str, object], says: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert says in one_sentence(caught.value)


def test_the_unit_divides_the_page() -> None:
    """A unit lies within one page."""
    check_page_size(64, 64)
    with pytest.raises(ConfigError) as caught:
        check_page_size(16, 32)
    assert one_sentence(caught.value).startswith("--sparsekv-unit-size 32 must divide --page-size")


def test_requests_cannot_ask_for_what_the_device_lacks() -> None:
    """400, and the server goes on."""
    request = RequestOptions(dense_layers=2)
    server = ServerOptions(request=request, device="triton", attend="fa2")
    with pytest.raises(RequestOptionError) as caught:
        parse_request_options({"reselect_every": 2}, server)
    assert "sparsekv.reselect_every must be at most 1 on device" in one_sentence(caught.value)
    with pytest.raises(RequestOptionError) as caught:
        parse_request_options({"dense_layers": 5}, server)
    assert "at most 2 on a server with attend fa2, got 5" in one_sentence(caught.value)
    with pytest.raises(RequestOptionError):
        parse_request_options({"unit_size": 64}, server)
    assert parse_request_options({"dense_layers": 1}, server).dense_layers == 1


def test_auto_takes_the_kernels_of_the_models_device(sglang: None) -> None:
    """And refuses what they lack."""
    from sgl_sparsekv.backend.resolution import device_of

    assert device_of(ServerOptions(), "cpu").device == "cpu"
    assert device_of(ServerOptions(), "cuda").device == "triton"
    assert device_of(ServerOptions(device="reference"), "cuda").device == "reference"
    with pytest.raises(ConfigError, match='budget_split must be "even" on device triton'):
        device_of(parse({"budget_split": "heads"}), "cuda")


def test_a_stock_kernel_that_cannot_serve_says_why(sglang: None) -> None:
    """On the shape and the GPU, before a request comes."""
    from sgl_sparsekv.backend.paged import PagedRoute

    shape = step_shape(Host("rust", 16, 8, torch.bfloat16, kind="fused"))  # heads of 8 channels
    wrong = {"fa2": ("head_dim", (9, 0)), "fa3": ("compute capability", (8, 0)),
             "xqa": ("compute capability", (8, 0))}  # fmt: skip
    for name, (what, capability) in wrong.items():
        with pytest.raises(UnsupportedSetup) as caught:
            PagedRoute(name, shape, 2, capability)
        assert what in one_sentence(caught.value)


def test_stock_kernels_are_refused_on_a_cpu(sglang: None) -> None:
    """With the remedy."""
    from sgl_sparsekv.backend.fused import FusedBackend

    backend = SimpleNamespace(options=ServerOptions(device="triton", attend="fa2"), on_cpu=True)
    with pytest.raises(UnsupportedSetup) as caught:
        FusedBackend._route(backend, None)
    assert "needs an NVIDIA GPU; use triton" in one_sentence(caught.value)


def test_batches_beyond_the_captured_ones_are_announced(
    sglang: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A bucket list too small for the server's batches: one sentence, with the flag to raise."""
    backend = Host("rust", 16, 8, kind="fused").backend
    backend.dense.init_cuda_graph_state = lambda *args: None
    with caplog.at_level(logging.WARNING):
        backend.init_cuda_graph_state(backend.max_rows, 64)
        assert not caplog.records
        backend.init_cuda_graph_state(backend.max_rows - 1, 64)
    assert "CUDA graphs; raise --cuda-graph-max-bs-decode" in caplog.messages[0]
    assert backend.gate.max_rows == backend.max_rows - 1, "never sparse and launched one by one"


def test_dense_work_goes_to_what_sglang_would_choose(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU by SGLang's own rule for that GPU, asked through SGLang's own function."""
    from sglang.srt.arg_groups import model_override_base as rule
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from sgl_sparsekv.backend.attention import dense_backend

    for name in ("fa3", "trtllm_mha", "flashinfer", "torch_native"):
        monkeypatch.setitem(ATTENTION_BACKENDS, name, lambda runner, name=name: name)
    monkeypatch.setattr(rule, "current_platform", SimpleNamespace(is_out_of_tree=lambda: False))
    monkeypatch.setattr(rule, "resolving_view", lambda server_args: server_args)
    monkeypatch.setattr(rule, "resolved_view", lambda server_args: server_args)
    monkeypatch.setattr(rule, "is_no_spec_infer_or_topk_one", lambda view: True)
    runner = SimpleNamespace(
        device="cuda",
        server_args=SimpleNamespace(speculative_algorithm=None),
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
            has_asymmetric_kv=False,
            has_attention_sinks=False,
        ),
    )
    for hopper, blackwell, wanted in ((1, 0, "fa3"), (0, 1, "trtllm_mha"), (0, 0, "flashinfer")):
        gpu = SimpleNamespace(
            is_hopper_with_cuda_12_3=hopper, is_sm100=blackwell, is_hip=False, has_flashinfer=True
        )
        monkeypatch.setattr(rule, "get_platform", lambda gpu=gpu: gpu)
        assert dense_backend(runner) == wanted
    runner.device = "cpu"
    assert dense_backend(runner) == "torch_native"


def test_prefill_limits_are_those_of_the_dense_backend(sglang: None) -> None:
    """Names that this SGLang knows, so that none is asked of the base class by mistake."""
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

    from sgl_sparsekv.backend.attention import DENSE_LIMITS

    assert all(hasattr(AttentionBackend, limit) for limit in DENSE_LIMITS)
    assert FlashInferAttnBackend.extend_dummy_seqs_capped_by_req_pool
    assert "extend_dummy_seqs_capped_by_req_pool" in DENSE_LIMITS
