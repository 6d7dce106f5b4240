"""The third graph of a batch size: what it measures of the rows that ask, and when it is replayed.

Kernels and graphs as in `test_graphs.py`.
"""

from typing import Any

import pytest
import torch
from helpers.fake_graph import Quiet
from helpers.graph_server import GROUP, HEADS, LAYERS, Inputs, Server, capture, draw

from sgl_sparsekv.backend.host_copies import Arrival, fetch_copies
from sgl_sparsekv.backend.telemetry import SAMPLE_EVERY
from sgl_sparsekv.config import RequestOptions

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu uses real graphs")

ASKED = (
    RequestOptions("quest", 128, telemetry=True),
    RequestOptions("streaming", 160, sink=0),
    RequestOptions("oracle", 0.4, sink=0, window=3, dense_layers=1, telemetry=True),
    RequestOptions("full", telemetry=True),
)
"""Of the four rows; two of them are measured."""
ROWS, LENGTHS = [1, 2, 3, 4], [400, 129, 301, 300]


@pytest.fixture
def pair(sglang: None) -> Any:
    """Two servers with the same memory that can measure: one replays graphs, one runs eagerly."""
    with pytest.MonkeyPatch.context() as patch:
        yield tuple(Server(patch, asked=ASKED, measure=True) for _ in range(2))


def masses_of(server: Server, row: int) -> dict[int, tuple[float, int]]:
    """By layer, the mean share of a row's request, and over how many query heads."""
    found = server.requests.entry(row).telemetry.masses
    return {layer: (mass.total / mass.count, mass.count) for layer, mass in found.items()}


def listen(server: Server, patch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Attention mass of the rows, float64 `[rows, H, G]`, layer by layer of steps without a graph:
    by the softmax of all keys, over the units that were selected."""
    found: list[torch.Tensor] = []
    held, measure = server.backend.step.buffers, server.backend.step.measure

    def brute(layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        masses = torch.ones(len(ROWS), HEADS, GROUP, dtype=torch.float64)
        for place, (row, length) in enumerate(zip(ROWS, LENGTHS, strict=True)):
            slots = server.table[row, :length].long()
            weights = torch.einsum("hgd,lhd->hgl", q[place].double(), keys[slots].double())
            weights = (weights * scale).softmax(-1)
            for head in range(HEADS):
                units = held.selected[place, head, : int(held.plan[4, place])]
                read = (slots[:, None] // 16 == units).any(-1)
                masses[place, head] = weights[head][:, read].sum(-1)
        found.append(masses)
        measure(layer, q, keys, scale)

    patch.setattr(server.backend.step, "measure", brute)
    return found


def test_a_measured_replay_tells_what_dense_attention_gives(pair: Any) -> None:
    """Of the rows that asked, in the layers in which they select; outputs stay, to the bit."""
    from sgl_sparsekv.backend.gate import MEASURED

    graphed, eager = pair
    inputs, plain = Inputs.of(4), Inputs.of(4)
    graph, out = capture(graphed, inputs, MEASURED)
    assert graph.launches[-2:] == ["mass_kernel", "seal_kernel"]
    assert graph.launches.count("mass_kernel") == LAYERS
    heard: list[tuple[str, torch.Tensor]] = []
    graphed.backend.telemetry._covered = lambda *told: heard.append(told)
    for server, where in ((graphed, inputs), (eager, plain)):
        server.launch(where, LENGTHS, ROWS, 0)
        draw(where, 3)
    with pytest.MonkeyPatch.context() as patch:
        brute = listen(eager, patch)
        eager.backend.init_forward_metadata(plain.batch)
        expected = eager.step(plain)
    assert graphed.backend.gate.select(inputs.batch) == MEASURED
    for row in ROWS:  # a request's first step may write its options
        graphed.backend.option_table.bind(row, graphed.requests.entry(row).options)
    with Quiet():
        graphed.backend.init_forward_metadata_out_graph(inputs.batch)
    graph.replay()
    assert torch.equal(out, expected), "measuring changes nothing"
    held = graphed.backend.step.buffers.masses
    assert torch.equal(held, eager.backend.step.buffers.masses)
    graphed.backend.copies.fetch()
    held.fill_(torch.nan)  # the next step's may lie there by now
    assert not masses_of(graphed, 1), "nothing has come yet, as far as anybody has looked"
    graphed.requests.settle()
    for place, layers in ((0, {0, 1}), (2, {1})):
        masses = masses_of(graphed, ROWS[place])
        assert masses.keys() == layers
        for layer, (mean, count) in masses.items():
            assert count == HEADS * GROUP
            assert mean == pytest.approx(float(brute[layer][place].mean()), abs=1e-5)
            assert 0.1 < mean < 0.999
    assert not masses_of(graphed, 2) and not masses_of(graphed, 4)
    assert [(method, mass.shape) for method, mass in heard] == [
        ("quest", (2, HEADS, GROUP)), ("oracle", (1, HEADS, GROUP)),
    ]  # fmt: skip
    told = graphed.requests.entry(4).telemetry.report(1)
    assert told["how"] == "everything" and told["attention_mass"]["mean"] == 1


def test_only_steps_in_which_a_sample_is_due_are_measured(pair: Any) -> None:
    """The first that selects and every 17th behind it, of each request by itself."""
    from sgl_sparsekv.backend.gate import DENSE, MEASURED, SPARSE

    server, inputs = pair[1], Inputs.of(2)
    server.launch(inputs, [130, 300], [2, 3], 1)  # streaming, and oracle that asks
    seen = []
    for step in range(SAMPLE_EVERY + 2):
        server.go_on(inputs, {2: 130 + step, 3: 300 + step})
        seen.append(server.backend.gate.select(inputs.batch))
        assert server.backend.gate.select(inputs.batch) == seen[-1], "SGLang may ask twice"
        server.backend.init_forward_metadata_out_graph(inputs.batch)
        fetch_copies(None)
    assert seen == [MEASURED, *[SPARSE] * (SAMPLE_EVERY - 1), MEASURED, SPARSE]
    server.requests.settle()
    assert server.requests.entry(3).telemetry.samples == 2
    server.backend.gate.needed = 1000
    server.go_on(inputs, {2: 150, 3: 320})
    server.requests.entry(3).telemetry.sparse_steps = 0
    assert server.backend.gate.select(inputs.batch) == DENSE
    server.backend.init_forward_metadata_out_graph(inputs.batch)
    assert server.requests.entry(3).telemetry.sparse_steps == 0


def test_a_copy_is_of_the_requests_that_the_step_had(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have other owners by the time it has come, and nobody waits for it."""
    server, inputs, arrived = pair[1], Inputs.of(1), False
    monkeypatch.setattr(Arrival, "has_come", property(lambda copy: arrived))
    server.launch(inputs, [400], [1], 0)
    first = server.requests.entry(1)
    server.backend.init_forward_metadata(inputs.batch)
    server.step(inputs)
    fetch_copies(None)
    server.launch(inputs, [300], [1], 0)
    second = server.requests.entry(1)
    server.backend.init_forward_metadata(inputs.batch)
    server.step(inputs)
    fetch_copies(None)
    assert first.telemetry.samples == second.telemetry.samples == 0
    arrived = True
    assert server.requests.report(second.rid) is not None
    assert first.telemetry.samples == second.telemetry.samples == 1
    assert masses_of(server, 1)[0] != first.telemetry.masses[0].total / (HEADS * GROUP)


def test_a_server_that_was_not_told_to_captures_two_graphs_and_says_so(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sgl_sparsekv.backend.gate import DENSE, MEASURED, SPARSE

    server, inputs = Server(monkeypatch, asked=ASKED), Inputs.of(1)
    assert server.backend.gate.capture_labels == (DENSE, SPARSE)
    assert not server.backend.step.buffers.masses.numel()
    server.launch(inputs, [400], [1], 0)
    assert server.backend.gate.select(inputs.batch) == SPARSE
    server.backend.init_forward_metadata_out_graph(inputs.batch)
    fetch_copies(None)
    entry = server.requests.entry(1)
    entry.decode_steps = 1
    told = entry.report()["telemetry"]
    assert told["attention_mass"] is None and "--sparsekv-measure true" in told["reason"]
    measuring = Server(monkeypatch, asked=ASKED, measure=True)
    assert measuring.backend.gate.capture_labels == (DENSE, SPARSE, MEASURED)
    size = measuring.backend.step.buffers.masses.numel()
    assert size == measuring.backend.max_rows * LAYERS * HEADS * GROUP
