"""Graph phases of the GPU backend: captured once, replayed for any batch, nothing waits.

The kernels are the Triton ones, in its interpreter; the graph is a fake that runs what it recorded.
"""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_graph import FakeGraph, Forbidden, Quiet
from helpers.graph_server import (
    ASKED_CLUSTERED,
    ASKED_FINER,
    ASKED_HELD,
    ASKED_TWO_LEVELS,
    CLUSTERED,
    FINER,
    LAYERS,
    SHORT_SEGMENTS,
    TWO_LEVELS,
    Inputs,
    Server,
    capture,
    draw,
    few_iterations,
    layer_of,
)

from sgl_sparsekv.config import RequestOptions

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu uses real graphs")

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


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Rows are longer than one program of `select` takes."""
    from sgl_sparsekv.kernels.triton import buffers, fused, narrow_ops

    for module in (buffers, fused, narrow_ops):
        patch.setattr(module, "SELECT_CHUNK", 128)


@pytest.fixture(scope="module")
def finer_pair(sglang: None) -> Any:
    """The same of methods that choose less than whole units, two of them by segment records; rows
    are longer than one program's."""
    with pytest.MonkeyPatch.context() as patch, few_iterations():
        shorten(patch)
        how = {"methods": FINER, "asked": ASKED_FINER, "index": SHORT_SEGMENTS}
        yield Server(patch, **how), Server(patch, **how)


@pytest.fixture
def server(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of its own."""
    return Server(monkeypatch)


def test_replays_equal_eager_steps(pair: Any) -> None:
    """Other rows, lengths, options, pages and batch sizes than at capture; the same bits."""
    check_replays(pair, (2, 4), BATCHES)


def test_replays_of_finer_units_equal_eager_steps(finer_pair: Any) -> None:
    """With records that are built between the replays."""
    check_replays(finer_pair, (4,), BATCHES[:2])
    for server in finer_pair:
        held = server.backend.step.buffers.records
        assert (held.table >= 0).any() and (held.told[:, 0] > 0).all()
        narrow = server.backend.step.buffers.narrow
        assert not (narrow.bins.any() or narrow.open_count.any()) and narrow.leasts.any()


def test_replays_of_two_levels_equal_eager_steps(sglang: None) -> None:
    """Bounds of segments are built between the replays, and some segments stay closed."""
    with pytest.MonkeyPatch.context() as patch:
        how = {"methods": TWO_LEVELS, "asked": ASKED_TWO_LEVELS}
        pair = Server(patch, **how), Server(patch, **how)
        check_replays(pair, (4,), BATCHES[:2])
        for server in pair:
            held = server.backend.step.buffers
            assert (held.records.table >= 0).any() and (held.records.told[:, 0] > 0).all()
            assert (held.levels.opened == 0).any() and (held.levels.opened > 0).any()


def test_replays_of_held_selections_equal_eager_steps(sglang: None) -> None:
    """A period begins with scores, goes on without any, and is over for who is another request."""
    from sgl_sparsekv.kernels.triton.spec import HOLDS, ORDINARY, USES

    with pytest.MonkeyPatch.context() as patch:
        how = {"asked": ASKED_HELD, "request": RequestOptions(reselect_every=8, budget=160)}
        pair = Server(patch, **how), Server(patch, **how)
        graph, did = go_on(pair, {1: 400, 2: 300, 3: 333, 4: 350}, 4, retracted=4)
        each = {1: [HOLDS, USES, USES, HOLDS], 2: [HOLDS, USES, HOLDS, USES]}
        each |= {3: [ORDINARY] * 4, 4: [HOLDS, USES, USES, HOLDS]}
        assert did == each
        layer = ["score_kernel", "select_kernel", "choose_held_kernel", "attend_kernel"]
        once = ["forget_kernel", "begin_kernel", "plan_held_kernel"]
        assert graph.launches == [*once, *layer * LAYERS, "seal_kernel", "commit_held_kernel"]


def test_replays_of_held_selections_of_clusters_equal_eager_steps(sglang: None) -> None:
    """What is not read is answered for in every step, whatever was ranked in it."""
    from sgl_sparsekv.kernels.triton.spec import HOLDS, USES

    with pytest.MonkeyPatch.context() as patch, few_iterations():
        shorten(patch)
        request = RequestOptions(reselect_every=3, budget=160)
        asked = [replace(options, reselect_every=3) for options in ASKED_CLUSTERED[::2]]
        how = {"methods": CLUSTERED, "asked": asked, "index": SHORT_SEGMENTS, "request": request}
        pair = Server(patch, **how), Server(patch, **how)
        graph, did = go_on(pair, {1: 400, 2: 300}, 2)
        assert did == {1: [HOLDS, USES], 2: [HOLDS, USES]}
        layer = graph.launches[-8:-2]
        assert layer == [
            *("select_kernel", "narrow_kernel", "place_kernel"),
            *("choose_held_kernel", "rest_kernel", "attend_kernel"),
        ]


def go_on(
    pair: Any, lengths: dict[int, int], steps: int, retracted: int = 0
) -> tuple[FakeGraph, dict[int, list[int]]]:
    """Steps of the same rows, replayed and without a graph: the graph, and what each row did.

    Args:
        pair: servers, of which the first replays.
        lengths: tokens of each row in front of the first step.
        steps: their number.
        retracted: row of a request that was, in front of the last one.
    """
    from sgl_sparsekv.backend.gate import SPARSE

    graphed, eager = pair
    inputs, plain = Inputs.of(len(lengths)), Inputs.of(len(lengths))
    graph, out = capture(graphed, inputs, SPARSE)
    both = ((graphed, inputs), (eager, plain))
    for server, where in both:
        server.launch(where, list(lengths.values()), list(lengths), 0)
    did: dict[int, list[int]] = {row: [] for row in lengths}
    for number in range(steps):
        lengths = {row: length + 1 for row, length in lengths.items()}
        for server, where in both:
            server.go_on(where, lengths)
            draw(where, number)
        if retracted and number == steps - 1:  # its first step told the device whose it is
            for server, _ in both:
                server.requests.entry(retracted).retractions = 1
            rows = list(lengths)
            graphed.backend.held.bind(rows, [graphed.requests.entry(row) for row in rows])
        assert graphed.backend.gate.select(inputs.batch) == SPARSE
        with Quiet() if number else nullcontext():
            graphed.backend.init_forward_metadata_out_graph(inputs.batch)
        graph.replay()
        eager.backend.init_forward_metadata(plain.batch)
        assert torch.equal(out, eager.step(plain))
        does = graphed.backend.step.buffers.holds.does[0].tolist()
        for row, doing in zip(did, does, strict=False):
            did[row].append(doing)
    return graph, did


def test_replays_of_clusters_equal_eager_steps(sglang: None) -> None:
    """Some clusters are looked into, others answer as a whole; rows without any stand beside."""
    with pytest.MonkeyPatch.context() as patch, few_iterations():
        shorten(patch)
        how = {"methods": CLUSTERED, "asked": ASKED_CLUSTERED, "index": SHORT_SEGMENTS}
        pair = Server(patch, **how), Server(patch, **how)
        check_replays(pair, (4,), BATCHES[:2])
        for server in pair:
            held = server.backend.step.buffers
            assert (held.records.table >= 0).any() and (held.records.told[:, 0] > 0).all()
            assert (held.clusters.opened > 0).any()


def check_replays(pair: Any, sizes: tuple[int, ...], batches: tuple[Any, ...]) -> None:
    """Graphs of some batch sizes, replayed for batches, and the same steps without one."""
    from sgl_sparsekv.backend.gate import DENSE, SPARSE
    from sgl_sparsekv.backend.request_table import activate

    graphed, eager = pair
    captured = {}
    for size in sizes:
        for variant in (DENSE, SPARSE):
            inputs = Inputs.of(size)
            captured[size, variant] = (inputs, *capture(graphed, inputs, variant))
    for number, (lengths, rows, asked) in enumerate(batches):
        size = min(size for size in sizes if size >= len(rows))
        inputs, graph, out = captured[size, SPARSE]
        plain = Inputs.of(size)
        for server, where in ((graphed, inputs), (eager, plain)):
            server.launch(where, lengths, rows, asked)
            draw(where, number)
        assert graphed.backend.gate.select(inputs.batch) == SPARSE
        for row in rows:  # a request's first step may write its options
            graphed.backend.option_table.bind(row, graphed.requests.entry(row).options)
        if graphed.backend.records is not None:  # what is built waits for nothing, and allocates
            for server, where in ((graphed, inputs), (eager, plain)):
                server.backend._build_records(server.backend._host_plan(where.batch), ())
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
            for ours, theirs in zip(*(s.backend._fields[layer].items() for s in pair), strict=True):
                parts = len(ours[1]) // len(sealed[0])
                written = sealed[0].repeat_interleave(parts)
                assert torch.equal(ours[1][written], theirs[1][written]), ours[0]
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


def test_launches_of_finer_units(finer_pair: Any) -> None:
    """Outliers of shadowkv, two launches for each kind of records, and two that choose tokens from
    long rows; no others in a layer."""
    from sgl_sparsekv.backend.gate import SPARSE

    graph, _ = capture(finer_pair[0], Inputs.of(2), SPARSE)
    once = ["forget_kernel", "forget_records_kernel", "begin_kernel", "list_records_kernel"]
    each = ["score_kernel", "outliers_kernel", *["codes_kernel"] * 4, "select_kernel"]
    each += ["narrow_kernel", "place_kernel", "attend_kernel"]
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
