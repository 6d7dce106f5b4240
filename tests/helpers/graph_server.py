"""The GPU's attention backend over Triton kernels in their interpreter, and graphs of its steps.

The kernels are the real ones; the graph is a fake that runs what it recorded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sgl_sparsekv.backend.prefix_order import BLOCK
from sgl_sparsekv.config import RequestOptions, ServerOptions
from sgl_sparsekv.segments import index, residual
from sgl_sparsekv.selection import IndexOptions

from .fake_graph import FakeGraph

LAYERS, HEADS, GROUP, DIM, PAGE, CONTEXT, REQUESTS = 2, 2, 4, 64, 64, 512, 9
SLOTS = 64 * PAGE
METHODS = ("full", "oracle", "quest", "streaming")
ASKED = (
    RequestOptions("quest", 128, dense_layers=0),
    RequestOptions("quest", 0.5, sink=0, window=3, dense_layers=1),
    RequestOptions("streaming", 160, dense_layers=0),
    RequestOptions("full"),
    RequestOptions("oracle", 128, dense_layers=0),
)
FINER = ("clusterkv", "full", "pqcache", "quest", "shadowkv")
ASKED_FINER = (
    RequestOptions("shadowkv", 128, dense_layers=0),
    RequestOptions("clusterkv", 0.4, sink=0, window=3, dense_layers=1),
    RequestOptions("quest", 160, dense_layers=0),
    RequestOptions("pqcache", 131, dense_layers=0),
    RequestOptions("full"),
)
TWO_LEVELS = ("full", "quest", "quest_int8", "quest_two_level", "quest_two_level_exact")
ASKED_TWO_LEVELS = (
    RequestOptions("quest_two_level", 40, sink=0, window=3, dense_layers=0),
    RequestOptions("quest_two_level_exact", 128, dense_layers=1),
    RequestOptions("quest", 160, dense_layers=0),
    RequestOptions("quest_int8", 128, dense_layers=1),
    RequestOptions("quest_two_level_exact", 0.4, sink=0, window=3, dense_layers=0),
)
ASKED_HELD = (
    RequestOptions("quest", 128, dense_layers=0, reselect_every=3),
    RequestOptions("oracle", 112, sink=0, window=3, dense_layers=1, reselect_every=2),
    RequestOptions("streaming", 160, dense_layers=0, reselect_every=4),
    RequestOptions("quest", 160, dense_layers=0, reselect_every=8),
)
CLUSTERED = ("full", "quest", "residual_pq")
ASKED_CLUSTERED = (
    RequestOptions("residual_pq", 48, sink=0, window=3, dense_layers=0),
    RequestOptions("residual_pq", 0.2, sink=0, window=3, dense_layers=1, estimate=False),
    RequestOptions("quest", 160, dense_layers=0, estimate=True),
    RequestOptions("quest", 160, dense_layers=0),
    RequestOptions("full"),
)
SHORT_SEGMENTS = IndexOptions(256, 32, 256, 1, 2, residual_segment=128, residual_subspaces=2)


@contextmanager
def few_iterations() -> Iterator[None]:
    """Records of two iterations: how good they are does not matter here, and k-means is slow."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ITERATIONS", "PQ_ITERATIONS"):
            patch.setattr(index, name, 2)
        for summary in (index.clusters, index.products, residual.residuals):
            summary.cache_clear()
        yield
    for summary in (index.clusters, index.products, residual.residuals):
        summary.cache_clear()


class Pool:
    """K and V as SGLang's pool shows them."""

    start_layer = 0

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        shape = (LAYERS, SLOTS, HEADS, DIM)
        self.keys = torch.randn(shape, generator=rng)
        self.values = torch.randn(shape, generator=rng)

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        """K of a layer."""
        return self.keys[layer]

    def get_kv_buffer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer."""
        return self.keys[layer], self.values[layer]

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write rows, as a graph can record it."""
        self.keys[layer.layer_id].index_copy_(0, where.loc, k)
        self.values[layer.layer_id].index_copy_(0, where.loc, v)


@dataclass
class Inputs:
    """Static inputs of one captured batch size, and the view that replays get."""

    rows: torch.Tensor
    lengths: torch.Tensor
    host: torch.Tensor
    slots: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def of(cls, size: int) -> "Inputs":
        """What a capture sees: row 0, one token."""
        return cls(
            torch.zeros(size, dtype=torch.int64),
            torch.ones(size, dtype=torch.int64),
            torch.ones(size, dtype=torch.int64),
            torch.zeros(size, dtype=torch.int64),
            torch.zeros(LAYERS, size, HEADS * GROUP * DIM),
            torch.zeros(LAYERS, size, HEADS, DIM),
            torch.zeros(LAYERS, size, HEADS, DIM),
        )

    @property
    def batch(self) -> Any:
        """What SGLang hands to the backend."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        return SimpleNamespace(
            batch_size=len(self.rows),
            forward_mode=ForwardMode.DECODE,
            req_pool_indices=self.rows,
            seq_lens=self.lengths,
            seq_lens_cpu=self.host,
            out_cache_loc=self.slots,
            out_cache_loc_is_physical=True,
        )


class Server:
    """The backend over a pool of its own; equal seeds give equal memory."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        layers: int = LAYERS,
        methods: Sequence[str] = METHODS,
        asked: Sequence[RequestOptions] = ASKED,
        **options: Any,
    ) -> None:
        from sgl_sparsekv.kernels.triton import load

        from sgl_sparsekv.backend import attention, fused, request_table
        from sgl_sparsekv.backend.kv_pool import segments, summaries
        from sgl_sparsekv.backend.layers import ModelLayers
        from sgl_sparsekv.geometry import Geometry
        from sgl_sparsekv.page_metadata import PageMetadata
        from sgl_sparsekv.page_metadata.pool import KeyLayout

        options = {"dense_below": 1, **options}
        served = ServerOptions(methods=tuple(methods), device="triton", **options)
        self.asked = asked
        self.pool = Pool(3)
        layout = KeyLayout(LAYERS, HEADS, DIM, torch.float32)
        self.pool.page_metadata = PageMetadata(
            Geometry(PAGE, 16), summaries(served), layout, SLOTS, "cpu", segments(served)
        )
        pages = torch.randperm(SLOTS // PAGE - 1, generator=torch.Generator().manual_seed(1)) + 1
        slots = (pages[:, None] * PAGE + torch.arange(PAGE)).reshape(-1)
        self.table = torch.zeros(REQUESTS, CONTEXT, dtype=torch.int32)
        self.table[1:7] = slots[: 6 * CONTEXT].view(6, CONTEXT).int()
        self.table[7, :128], self.table[8, :256] = self.table[1, :128], self.table[2, :256]
        monkeypatch.setattr(attention, "check_runner", lambda *args: None)
        monkeypatch.setattr(attention, "dense_backend", lambda runner: DenseStub())
        monkeypatch.setattr(attention, "layers_of_all_stages", ModelLayers.of)
        monkeypatch.setattr(attention, "StepObserver", lambda *args: Observer())
        monkeypatch.setattr(fused, "captured_rows", lambda: None)
        for module in (attention, fused):
            monkeypatch.setattr(
                module, "attention_layers", lambda model: [layer_of(n) for n in range(layers)]
            )
        runner = SimpleNamespace(
            device="cpu",
            model=None,
            req_to_token_pool=SimpleNamespace(
                req_to_token=self.table, size=REQUESTS - 1, available_size=lambda: REQUESTS - 1
            ),
            token_to_kv_pool=self.pool,
        )
        self.backend = fused.FusedBackend(runner, served, load())
        self.requests = request_table.active_table()

    def launch(self, inputs: Inputs, lengths: list[int], rows: list[int], asked: int) -> None:
        """SGLang's scheduler launches a batch and fills the static inputs."""
        for i, row in enumerate(rows):
            entry = self.requests._enter(Request(f"{row}.{asked}"))
            entry.options = self.asked[(i + asked) % len(self.asked)]
            self.requests._by_row[row] = entry
        self.go_on(inputs, dict(zip(rows, lengths, strict=True)))

    def admit(self, prompts: dict[int, tuple[RequestOptions, int]]) -> None:
        """Requests come to rows: what they ask for, and tokens of their prompts."""
        for row, (options, prompt) in prompts.items():
            entry = self.requests._enter(Request(f"{row}"))
            entry.options = options
            entry.view = None
            if self.requests.view_of is not None:
                entry.view = self.requests.view_of(options, prompt, options.unit_size)
            self.requests._by_row[row] = entry

    def prefill(self, parts: dict[int, tuple[int, int]], q: torch.Tensor) -> None:
        """Rows read a part of their prompts, from one token to below another, whose K and V are in
        the pool: q `[layers, tokens, Hq * D]`."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        rows, lengths = torch.tensor([*parts]), torch.tensor([end for _, end in parts.values()])
        slots = [self.table[row, first:end].long() for row, (first, end) in parts.items()]
        batch = SimpleNamespace(
            batch_size=len(rows),
            forward_mode=ForwardMode.EXTEND,
            req_pool_indices=rows,
            seq_lens=lengths,
            seq_lens_cpu=lengths,
            extend_seq_lens_cpu=[end - first for first, end in parts.values()],
            out_cache_loc=torch.cat(slots),
            out_cache_loc_is_physical=True,
        )
        self.requests.launched = rows.numpy()
        self.backend.init_forward_metadata(batch)
        for n in range(LAYERS):
            self.backend.forward_extend(q[n], None, None, layer_of(n), batch)

    def go_on(self, inputs: Inputs, lengths: dict[int, int]) -> None:
        """The scheduler launches rows that are there, and fills the static inputs."""
        size = len(lengths)
        self.requests.launched = np.array([*lengths])
        inputs.rows.zero_()
        inputs.lengths.fill_(1)
        inputs.slots.zero_()
        inputs.rows[:size] = torch.tensor([*lengths])
        inputs.lengths[:size] = torch.tensor([*lengths.values()])
        inputs.host.copy_(inputs.lengths)
        inputs.slots[:size] = self.table[inputs.rows[:size], inputs.lengths[:size] - 1].long()

    def step(self, inputs: Inputs) -> torch.Tensor:
        """The layers of one decode step: outputs `[layers, rows, Hq * D]`."""
        outputs = [
            self.backend.forward_decode(
                inputs.q[n], inputs.k[n], inputs.v[n], layer_of(n), inputs.batch
            ).clone()  # the next layer writes where it lies
            for n in range(LAYERS)
        ]
        return torch.stack(outputs)


class Request:
    """What the table of requests reads from SGLang's."""

    def __init__(self, rid: str) -> None:
        self.rid = rid
        self.sampling_params = SimpleNamespace(custom_params=None)
        self.origin_input_ids = [int(rid[0]) % 3] * BLOCK  # so rows do not stand in their order


class Observer:
    """Hears nothing."""

    check_is_due = False

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class DenseStub:
    """SGLang's dense backend: here it marks its output."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def forward_extend(self, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Prefill whose result nobody judges."""
        return torch.zeros_like(q)

    def forward_decode(self, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Not ours."""
        return q * 0 + 77


def layer_of(number: int) -> Any:
    """What the backend reads from SGLang's `RadixAttention`."""
    return SimpleNamespace(
        layer_id=number,
        tp_q_head_num=HEADS * GROUP,
        tp_k_head_num=HEADS,
        qk_head_dim=DIM,
        v_head_dim=DIM,
        scaling=DIM**-0.5,
        sliding_window_size=-1,
        is_cross_attention=False,
        attn_type="decoder",
        logit_cap=0.0,
        xai_temperature_len=-1,
    )


def draw(inputs: Inputs, seed: int) -> None:
    """Fresh q, k and v in the static inputs."""
    rng = torch.Generator().manual_seed(seed)
    for tensor in (inputs.q, inputs.k, inputs.v):
        tensor.copy_(torch.randn(tensor.shape, generator=rng))


def capture(server: Server, inputs: Inputs, variant: str) -> tuple[FakeGraph, torch.Tensor]:
    """Capture one variant of one batch size, as SGLang's runner does."""
    from sglang.srt.model_executor.runner_utils import capture_mode

    graph = FakeGraph()
    capture_mode._set_capture_attention_variant(variant)
    server.backend.init_forward_metadata_out_graph(inputs.batch, in_capture=True)
    server.backend.init_forward_metadata_in_graph(inputs.batch)  # warm-up
    server.step(inputs)
    with graph.capture():
        server.backend.init_forward_metadata_in_graph(inputs.batch)
        out = server.step(inputs)
    capture_mode._set_capture_attention_variant(None)
    return graph, out
