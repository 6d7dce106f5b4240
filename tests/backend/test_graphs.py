"""Graph phases of the GPU backend: captured once, replayed for any batch, nothing waits.

The kernels are the Triton ones, in its interpreter; the graph is a fake that runs what it recorded.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_graph import FakeGraph, Forbidden, Quiet

from sgl_sparsekv.backend.prefix_order import BLOCK
from sgl_sparsekv.config import RequestOptions, ServerOptions

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu uses real graphs")

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
        self, monkeypatch: pytest.MonkeyPatch, layers: int = LAYERS, **options: Any
    ) -> None:
        from sgl_sparsekv.kernels.triton import load

        from sgl_sparsekv.backend import attention, fused, request_table
        from sgl_sparsekv.backend.layers import ModelLayers
        from sgl_sparsekv.geometry import Geometry
        from sgl_sparsekv.page_metadata import PageMetadata
        from sgl_sparsekv.page_metadata.pool import KeyLayout
        from sgl_sparsekv.selection.quest import Quest

        self.pool = Pool(3)
        layout = KeyLayout(LAYERS, HEADS, DIM, torch.float32)
        self.pool.page_metadata = PageMetadata(
            Geometry(PAGE, 16), (Quest.summary,), layout, SLOTS, "cpu"
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
        asked = ServerOptions(methods=METHODS, device="triton", **{"dense_below": 1, **options})
        self.backend = fused.FusedBackend(runner, asked, load())
        self.requests = request_table.active_table()

    def launch(self, inputs: Inputs, lengths: list[int], rows: list[int], asked: int) -> None:
        """SGLang's scheduler launches a batch and fills the static inputs."""
        for i, row in enumerate(rows):
            entry = self.requests._enter(Request(f"{row}.{asked}"))
            entry.options = ASKED[(i + asked) % len(ASKED)]
            self.requests._by_row[row] = entry
        self.requests.launched = np.array(rows)
        size = len(rows)
        inputs.rows.zero_()
        inputs.lengths.fill_(1)
        inputs.slots.zero_()
        inputs.rows[:size] = torch.tensor(rows)
        inputs.lengths[:size] = torch.tensor(lengths)
        inputs.host.copy_(inputs.lengths)
        inputs.slots[:size] = self.table[inputs.rows[:size], inputs.lengths[:size] - 1].long()

    def step(self, inputs: Inputs) -> torch.Tensor:
        """The layers of one decode step: outputs `[layers, rows, Hq * D]`."""
        outputs = [
            self.backend.forward_decode(
                inputs.q[n], inputs.k[n], inputs.v[n], layer_of(n), inputs.batch
            )
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


BATCHES = (
    ([400, 129, 300], [1, 2, 3], 0),
    ([401, 130, 301, 511], [1, 2, 3, 4], 0),
    ([16, 480], [7, 5], 1),
    ([17, 481, 256, 304], [7, 5, 8, 1], 3),
)


@pytest.fixture(scope="module")
def pair(sglang: None) -> Any:
    """Two servers with the same memory: one replays graphs, one runs eagerly."""
    with pytest.MonkeyPatch.context() as patch:
        yield Server(patch), Server(patch)


@pytest.fixture
def server(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of its own."""
    return Server(monkeypatch)


def test_replays_equal_eager_steps(pair: Any) -> None:
    """Other rows, lengths, options, pages and batch sizes than at capture; the same bits."""
    from sgl_sparsekv.backend.gate import DENSE, SPARSE
    from sgl_sparsekv.backend.request_table import activate

    graphed, eager = pair
    captured = {}
    for size in (2, 4):
        for variant in (DENSE, SPARSE):
            inputs = Inputs.of(size)
            captured[size, variant] = (inputs, *capture(graphed, inputs, variant))
    for number, (lengths, rows, asked) in enumerate(BATCHES):
        size = 2 if len(rows) <= 2 else 4
        inputs, graph, out = captured[size, SPARSE]
        plain = Inputs.of(size)
        for server, where in ((graphed, inputs), (eager, plain)):
            server.launch(where, lengths, rows, asked)
            draw(where, number)
        assert graphed.backend.gate.select(inputs.batch) == SPARSE
        for row in rows:  # a request's first step may write its options
            graphed.backend.option_table.bind(row, graphed.requests.entry(row).options)
        with Quiet():
            graphed.backend.init_forward_metadata_out_graph(inputs.batch)
        graph.replay()
        eager.backend.init_forward_metadata(plain.batch)
        expected = eager.step(plain)
        real = len(rows)
        assert torch.equal(out[:, :real], expected[:, :real]), f"batch {number}"
        sealed = graphed.backend.metadata.sealed, eager.backend.metadata.sealed
        assert torch.equal(*sealed) and bool(sealed[0].any())
        assert not graphed.backend.step.buffers.tickets.any(), "a split waits for ever on one left"
        for layer in range(LAYERS):
            ours, theirs = (
                s.backend.metadata.fields("min_max", layer)[sealed[0]] for s in (graphed, eager)
            )
            assert torch.equal(ours, theirs)
    activate(graphed.backend.options)


def test_short_batches_take_the_dense_graph(pair: Any) -> None:
    """Below the break-even, and only there; above the largest sparse batch too."""
    from sgl_sparsekv.backend.gate import DENSE, SPARSE

    server = pair[1]
    server.backend.gate.needed = 100
    inputs = Inputs.of(4)
    server.launch(inputs, [60, 90, 40], [1, 2, 3], 0)
    assert server.backend.gate.select(inputs.batch) == DENSE
    server.backend.init_forward_metadata_out_graph(inputs.batch)
    assert (server.step(inputs) == 77).all()
    server.launch(inputs, [60, 400, 40], [1, 2, 3], 4)
    assert server.backend.gate.select(inputs.batch) == SPARSE
    many = SimpleNamespace(**{**vars(inputs.batch), "batch_size": server.backend.max_rows + 1})
    assert server.backend.gate.select(many) == DENSE


def test_an_idle_rank_takes_part_in_the_step_of_the_others(server: Server) -> None:
    """Attention data parallelism: no request of its own, padding alone, and no plan."""
    from sgl_sparsekv.backend.gate import DENSE

    inputs = Inputs.of(2)
    server.requests.launched = np.zeros(0, dtype=np.int64)
    idle = SimpleNamespace(**{**vars(inputs.batch), "seq_lens_cpu": inputs.host[:0]})
    assert server.backend.gate.select(idle) == DENSE
    server.backend.init_forward_metadata_out_graph(idle)
    server.backend.init_forward_metadata_in_graph(idle)
    assert (server.step(inputs) == 77).all()


def test_keywords_of_a_sparse_step_are_refused_unless_known_before(server: Server) -> None:
    """SGLang's backend would read what another step prepared; prefill tells in time."""
    from sgl_sparsekv.errors import UnsupportedSetup

    inputs = Inputs.of(1)
    server.launch(inputs, [400], [1], 4)
    server.backend.init_forward_metadata(inputs.batch)
    call = (inputs.q[1], inputs.k[1], inputs.v[1], layer_of(1), inputs.batch)
    plain = server.backend.forward_decode(*call, sinks=None)
    assert not (plain == 77).all(), "a keyword of None asks for nothing"
    with pytest.raises(UnsupportedSetup, match="layer 1 of this model calls attention with"):
        server.backend.forward_decode(*call, sinks=torch.zeros(4))


def test_layers_that_prefill_called_with_keywords_are_dense_in_sparse_steps(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Warned of once, counted as SGLang's, and SGLang's backend is prepared for them."""
    inputs = Inputs.of(1)
    prepared: list[Any] = []
    server.backend.dense.init_forward_metadata = prepared.append
    server.backend.dense.forward_extend = lambda q, *args, **kwargs: q * 0 + 77
    server.backend._extending = True
    for _ in range(2):
        server.backend.forward_extend(
            inputs.q[1], inputs.k[1], inputs.v[1], layer_of(1), inputs.batch, sinks=torch.zeros(4)
        )
    warned = [text for text in caplog.messages if "it is called with sinks" in text]
    assert len(warned) == 1 and "layer 1 is served dense" in warned[0]
    assert server.backend.layers.ours.tolist() == [True, False]
    server.launch(inputs, [400], [1], 4)
    server.backend.init_forward_metadata(inputs.batch)
    assert len(prepared) == 1
    out = [
        server.backend.forward_decode(
            inputs.q[n], inputs.k[n], inputs.v[n], layer_of(n), inputs.batch, **keywords
        )
        for n, keywords in enumerate(({}, {"sinks": torch.zeros(4)}))
    ]
    assert not (out[0] == 77).all() and (out[1] == 77).all()


def test_units_are_sealed_behind_the_last_layer_that_has_attention(
    monkeypatch: pytest.MonkeyPatch, sglang: None
) -> None:
    """A model may end with layers that have none; the pool has room for them all the same."""
    server, inputs = Server(monkeypatch, layers=1), Inputs.of(1)
    server.launch(inputs, [400], [1], 4)
    draw(inputs, 5)
    server.backend.init_forward_metadata(inputs.batch)
    server.backend.forward_decode(inputs.q[0], inputs.k[0], inputs.v[0], layer_of(0), inputs.batch)
    assert int(server.backend.metadata.sealed.sum()) == 400 // 16


def test_slots_that_were_handed_out_are_kept_for_the_stream_that_reads_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come from the scheduler's stream, whose allocator may give their memory to others."""
    heard: list[object] = []
    backend = server.backend

    class OnDevice:
        is_cuda = True

        def record_stream(self, stream: object) -> None:
            heard.append(stream)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "forward")
    monkeypatch.setattr(backend.step, "forget", lambda sealed, slots: heard.append(slots))
    slots = OnDevice()
    backend._handed_out.append(slots)
    backend._before_step(None)
    assert heard == ["forward", slots] and not backend._handed_out


def test_three_launches_per_layer(pair: Any) -> None:
    """Beside the KV write; stamps, plan and seal come once per step."""
    from sgl_sparsekv.backend.gate import SPARSE

    graph, _ = capture(pair[0], Inputs.of(2), SPARSE)
    once = ["forget_kernel", "begin_kernel"]
    each = ["score_kernel", "select_kernel", "attend_kernel"]
    assert graph.launches == [*once, *each * LAYERS, "seal_kernel"]


def test_the_fake_refuses_what_a_graph_cannot_hold() -> None:
    """Else the tests above could not fail."""
    x = torch.arange(4)
    for bad in (lambda: x.sum().item(), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.unique()):
        with pytest.raises(Forbidden), FakeGraph().capture():
            bad()
        with pytest.raises(Forbidden), Quiet():
            bad()
    with pytest.raises(Forbidden), Quiet():
        x + 1
    graph, y = FakeGraph(), torch.zeros(4, dtype=torch.int64)
    with graph.capture():
        y.copy_(x * 2)
    x += 1
    graph.replay()
    assert y.tolist() == [2, 4, 6, 8]
