"""SGLang's own attention kit, run on our backend with every unit read.

Left out, with the reason:
    page size 1          refused by the backend (a server says so at start)
    graph, split-op and speculative runner modes   need CUDA streams and graphs
    MLA, DSA, GDN, KDA, lightning, mamba, DSv4     other attention families; MLA is refused
"""

from collections.abc import Iterator
from typing import Any, NoReturn
from unittest import TestCase

import pytest
import torch

pytestmark = pytest.mark.usefixtures("sglang_plugins")


class Case(TestCase):
    """The kit skips a backend that does not start; ours has to."""

    def skipTest(self, reason: str) -> NoReturn:
        """Fail."""
        pytest.fail(reason)


@pytest.fixture(params=["reference", "cpu"])
def kit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The kit's dense module, building our pool as the configurator hook does."""
    monkeypatch.setenv("SGL_SPARSEKV_CONFIG", f'{{"method": "full", "device": "{request.param}"}}')
    from sglang.test.kits.attention_unittest.attention_methods import dense_attention

    from sgl_sparsekv.backend.kv_pool import pool_class, summaries
    from sgl_sparsekv.config import parse_server_options

    options = parse_server_options({"method": "full"})
    ours = pool_class(dense_attention.MHATokenToKVPool, summaries(options))
    monkeypatch.setattr(dense_attention, "MHATokenToKVPool", ours)
    swa = dense_attention._SWA_DECODE_EXTEND_WINDOW | {"sparsekv"}  # served by torch_native
    monkeypatch.setattr(dense_attention, "_SWA_DECODE_EXTEND_WINDOW", swa)
    from sglang.srt.runtime_context import get_parallel

    with get_parallel().override(attn_tp_rank=0):
        yield dense_attention


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
def test_kit_cases_match_the_kits_reference(kit: Any, layout: str, head_dim: int) -> None:
    """Extend and decode over page edges; MHA, GQA, MQA; sliding windows through torch_native."""
    torch.set_num_threads(2)
    ran = 0
    for case in cases(kit):
        kit.run_dense_attention_case(
            Case(), case, device="cpu", loc_layout=layout, head_dim=head_dim
        )
        ran += 1
    assert ran >= 12
