"""SGLang's own attention kit, run on our backend with every unit read.

On a GPU also with its graph runner: metadata as for a captured graph, padded rows included.
Left out, with the reason:
    page size 1          refused by the backend (a server says so at start)
    split-op and speculative runner modes          speculative decoding is not served
    MLA, DSA, GDN, KDA, lightning, mamba, DSv4     other attention families; MLA is refused
"""

import json
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest import TestCase

import pytest
import torch

from sgl_sparsekv.backend.gate import SPARSE, BreakEven

pytestmark = pytest.mark.usefixtures("sglang_plugins")


class Case(TestCase):
    """The kit skips a backend that does not start; ours has to."""

    def skipTest(self, reason: str) -> NoReturn:
        """Fail."""
        pytest.fail(reason)


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(params=["reference", "cpu", pytest.param("triton", marks=GPU)])
def kit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The kit's dense module, building our pool as the configurator hook does."""
    if request.param != "triton" and torch.cuda.is_available():
        pytest.skip("SGLang takes the GPU of this machine")
    config = {"method": "full", "device": request.param, "dense_below": 0}
    monkeypatch.setenv("SGL_SPARSEKV_CONFIG", json.dumps(config))
    # The kit's batches own no requests, and without a plan a step would be dense.
    monkeypatch.setattr(BreakEven, "select", always_sparse)
    from sglang.test.kits.attention_unittest.attention_methods import dense_attention

    from sgl_sparsekv.backend.kv_pool import pool_class, summaries
    from sgl_sparsekv.config import parse_server_options

    options = parse_server_options({"method": "full"})
    ours = pool_class(dense_attention.MHATokenToKVPool, summaries(options))
    monkeypatch.setattr(dense_attention, "MHATokenToKVPool", ours)
    swa = dense_attention._SWA_DECODE_EXTEND_WINDOW | {"sparsekv"}  # served by torch_native
    monkeypatch.setattr(dense_attention, "_SWA_DECODE_EXTEND_WINDOW", swa)
    from sglang.srt.runtime_context import get_parallel

    place = {"dp_rank": None, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1}
    with get_parallel().override(attn_tp_rank=0, **place):
        yield dense_attention


def always_sparse(gate: BreakEven, forward_batch: Any) -> str:
    """In place of the break-even."""
    gate.chosen = SPARSE
    return SPARSE


def show_layer(case: Any, head_dim: int, patch: pytest.MonkeyPatch) -> None:
    """The kit's model shows no attention module to the backend; here is the one that it calls."""
    from sglang.srt.layers.radix_attention import RadixAttention

    from sgl_sparsekv.backend import attention, fused
    from sgl_sparsekv.backend.layers import UNBOUNDED, ModelLayers

    window, heads = case.sliding_window_size, (case.num_heads, case.num_kv_heads)
    reach = UNBOUNDED if window is None else window + 1
    layers = ModelLayers([0], [reach], [window is None])
    layer = RadixAttention(heads[0], head_dim, head_dim**-0.5, heads[1], layer_id=0)
    patch.setattr(attention, "layers_of_all_stages", lambda modules: layers)
    patch.setattr(fused, "attention_layers", lambda model: [layer])


def cases(kit: Any) -> list[Any]:
    made = [
        *kit.make_dense_cases("sparsekv"),
        *kit.make_swa_no_prefix_input_config_cases("sparsekv"),
        *kit.make_swa_prefix_input_config_cases("sparsekv"),
    ]
    return [case for case in made if case.page_size != 1]


@torch.no_grad()  # the kit writes K and V by kernels that autograd does not see
@pytest.mark.parametrize("layout", ["contiguous", "shuffled_pages", "interleaved_pages"])
@pytest.mark.parametrize("head_dim", [16, 64])
def test_kit_cases_match_the_kits_reference(
    kit: Any,
    layout: str,
    head_dim: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Extend and decode over page edges; MHA, GQA, MQA; sliding windows through SGLang's own."""
    on_gpu = request.node.get_closest_marker("gpu") is not None
    if on_gpu and head_dim == 16:
        pytest.skip("no kernel for head_dim 16")
    torch.set_num_threads(2)
    ran = 0
    for case in cases(kit):
        show_layer(case, head_dim, monkeypatch)
        kit.run_dense_attention_case(
            Case(), case, device="cuda" if on_gpu else "cpu", loc_layout=layout, head_dim=head_dim
        )
        ran += 1
    assert ran >= 12


@torch.no_grad()
@pytest.mark.parametrize("kit", [pytest.param("triton", marks=GPU)], indirect=True)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_graph_runner_cases_match_the_kits_reference(
    kit: Any, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kit's decode cases through the phases of a captured graph."""
    from sglang.test.kits.attention_unittest.runner_modes import cuda_graph_decode_runner

    decode = [case for case in cases(kit) if case.forward_mode.is_decode()]
    for case in decode:
        show_layer(case, head_dim, monkeypatch)
        cuda_graph_decode_runner.run_dense_cuda_graph_decode_case(
            Case(), case, head_dim=head_dim, device="cuda"
        )
    assert decode
