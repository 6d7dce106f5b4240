"""Requests that ask for a coverage on a device that serves whole steps."""

from typing import Any

import pytest
import torch
from helpers.fake_graph import Quiet
from helpers.graph_server import HEADS, LAYERS, SHORT_SEGMENTS, Inputs, Server, capture, draw
from helpers.host import Host
from helpers.scenarios import PAGE, PAGES, SPARSE, prompt

from sgl_sparsekv.config import RequestOptions

ASKING = SPARSE | {"coverage": 0.5, "budget": 0.9}
READ = ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))
"""Layers, and places of requests that select in them."""
METHODS = ("quest", "mean_std", "oracle", "clusterkv", "pqcache")


def told_of(host: Host, options: list[dict[str, Any]]) -> list[Any]:
    """What requests read in every step, layer and KV head, and what their reports say at last."""
    lives = [host.start(prompt(1 + i), own) for i, own in enumerate(options)]
    host.prefill(lives, 1000)
    seen: list[Any] = []
    for _ in range(3):
        host.decode(lives)
        seen += [host.recorder.units_of(layer, place) for layer, place in READ]
    for live in lives:
        report = host.backend.table.report(live.req.rid)
        seen.append([report[name] for name in ("tokens_attended", "tokens_in_context")])
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_a_device_reads_and_counts_what_a_cpu_does(sglang: None, method: str) -> None:
    """Beside a request with the same method and none, and one that is dense in a layer."""
    own = {"method": method}
    asked = [ASKING | own, SPARSE | own, ASKING | own | {"coverage": 0.7, "dense_layers": 1}]
    found = [
        told_of(Host("rust", PAGE, PAGES, kind=kind, covers=True), asked)
        for kind in ("grouped", "fused")
    ]
    assert found[0] == found[1]
    counts = {len(head) for heads in found[1][: -len(asked) : 2] for head in heads}
    assert len(counts) > 1, "KV heads and layers read alike"
    for attended, in_context in found[1][-len(asked) :]:
        assert 0 < attended < in_context


GRAPHS = pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu uses real graphs")
ASKED = (
    RequestOptions("quest", 300, coverage=0.7),
    RequestOptions("oracle", 0.9, sink=0, window=3, coverage=0.9, dense_layers=1),
    RequestOptions("mean_std", 160),
    RequestOptions("pqcache", 0.9, coverage=0.8),
)


@GRAPHS
def test_replays_equal_eager_steps(sglang: None) -> None:
    """With other goals than at capture; what was counted is the same, and comes behind the step."""
    from sgl_sparsekv.backend.gate import SPARSE as GRAPH

    with pytest.MonkeyPatch.context() as patch:
        methods = ("mean_std", "oracle", "pqcache", "quest")
        how = {"methods": methods, "asked": ASKED, "index": SHORT_SEGMENTS}
        graphed, eager = (Server(patch, serve_coverage=True, **how) for _ in range(2))
        inputs, plain = Inputs.of(4), Inputs.of(4)
        graph, out = capture(graphed, inputs, GRAPH)
        own = ["known_kernel", "spread_kernel", "draw_kernel", "weigh_kernel", "count_kernel"]
        assert [name for name in graph.launches if name in own] == own * LAYERS
        for number, asked in enumerate((0, 1)):
            for server, where in ((graphed, inputs), (eager, plain)):
                server.launch(where, [400, 300, 129, 500], [1, 2, 3, 4], asked)
                draw(where, number)
            for row in range(1, 5):  # a request's first step may write its options
                graphed.backend.option_table.bind(row, graphed.requests.entry(row).options)
            for server, where in ((graphed, inputs), (eager, plain)):
                server.backend._build_records(server.backend._host_plan(where.batch), ())
            assert graphed.backend.gate.select(inputs.batch) == GRAPH
            with Quiet():
                graphed.backend.init_forward_metadata_out_graph(inputs.batch)
            graph.replay()
            graphed.backend.copies.fetch()
            eager.backend.init_forward_metadata(plain.batch)
            assert torch.equal(out, eager.step(plain))
            eager.backend.copies.fetch()
            held = [server.backend.step.buffers.cover for server in (graphed, eager)]
            assert torch.equal(held[0].told, held[1].told)
            for server in (graphed, eager):
                check_reports(server, held[0].told)


def check_reports(server: Server, told: torch.Tensor) -> None:
    """Tokens that rows with a goal have read are those that the device counted."""
    seen: dict[int, int] = {}
    server.backend.counts._read = lambda entry, tokens, heads: seen.update({entry.serial: tokens})
    server.requests.settle()
    for place, length in enumerate((400, 300, 129, 500)):
        entry = server.requests.entry(place + 1)
        if entry.options.coverage is None:
            assert entry.serial not in seen
            continue
        unit = 1 if entry.options.method == "pqcache" else 16
        layers = range(entry.options.dense_layers, LAYERS)
        units = sum(int(told[place, layer].sum()) for layer in layers)
        missing = unit - ((length - 1) % unit + 1)
        assert seen[entry.serial] == units * unit - missing * HEADS * len(layers)
