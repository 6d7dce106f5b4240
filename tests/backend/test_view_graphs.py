"""Views on a GPU: steps that are captured once, rows that keep what the CPU's would keep.

The kernels are the Triton ones, in their interpreter; graphs are fakes that run what they recorded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from helpers.fake_graph import FakeGraph, Quiet
from helpers.graph_server import (
    CONTEXT,
    DIM,
    GROUP,
    HEADS,
    LAYERS,
    METHODS,
    Inputs,
    Server,
    capture,
    draw,
    layer_of,
)

from sgl_sparsekv.backend.views.device_view import DeviceView
from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.selection import load_method, view_names
from sgl_sparsekv.selection.view import ViewMethod
from sgl_sparsekv.views import RequestView

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu uses real graphs")
SEED = 40
KEEPS = RequestOptions(
    "snapkv", 96, sink=4, window=16, observation_window=8, renew_every=3, pooling=3
)


@dataclass
class Twin:
    """A CPU's view of a row, shown the same queries.

    Attributes:
        view: of the request.
        queries: by layer, of every position so far, `[n, H, G, D]`.
    """

    view: RequestView
    queries: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, options: RequestOptions, prompt: int) -> "Twin":
        """Of a request that nobody has read yet."""
        method = load_method(options.method)
        assert isinstance(method, ViewMethod)
        return cls(RequestView(method, options, prompt, options.unit_size))

    def see(self, server: Server, row: int, first: int, q: torch.Tensor) -> None:
        """A step brings the context to `first` tokens and the queries `[layers, n, Hq * D]`."""
        length = first + q.shape[1]
        for layer in range(LAYERS):
            self.view.observe(layer, q[layer].view(-1, HEADS, GROUP, DIM), first)
            if self.view.is_due(length):
                slots = server.table[row, :length].long()
                self.view.weigh(layer, server.pool.keys[layer], slots, layer_of(layer).scaling)
        self.view.settle(range(LAYERS))


@dataclass
class Served:
    """A server whose sparse step of four rows is captured, and the twins of its views."""

    server: Server
    inputs: Inputs
    graph: FakeGraph
    out: torch.Tensor
    twins: dict[int, Twin] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    number: int = 0

    @classmethod
    def start(cls, patch: pytest.MonkeyPatch, methods: tuple[str, ...]) -> "Served":
        """Graphs first, as SGLang has it; no request is there yet."""
        from sgl_sparsekv.backend.gate import SPARSE

        server, inputs = Server(patch, methods=methods), Inputs.of(4)
        return cls(server, inputs, *capture(server, inputs, SPARSE))

    def admit(self, asked: dict[int, tuple[RequestOptions, int]]) -> None:
        """Requests whose methods may keep views."""
        self.server.admit(asked)
        keeping = {row: one for row, one in asked.items() if load_method(one[0].method).narrows}
        self.twins |= {row: Twin.of(*one) for row, one in keeping.items()}

    def prefill(self, parts: dict[int, tuple[int, int]]) -> None:
        """Rows read these tokens of their prompts, in one batch."""
        self.number += 1
        rng = torch.Generator().manual_seed(SEED + self.number)
        total = sum(end - first for first, end in parts.values())
        q = torch.randn(LAYERS, total, HEADS * GROUP * DIM, generator=rng)
        self.server.prefill(parts, q)
        at = 0
        for row, (first, end) in parts.items():
            self.lengths[row] = end
            if row in self.twins:
                self.twins[row].see(self.server, row, first, q[:, at : at + end - first])
            at += end - first

    def decode(self, rows: list[int]) -> torch.Tensor:
        """One step, replayed: outputs `[layers, rows, Hq * D]`."""
        from sgl_sparsekv.backend.gate import SPARSE

        server, inputs = self.server, self.inputs
        self.number += 1
        for row in rows:
            self.lengths[row] += 1
        server.go_on(inputs, {row: self.lengths[row] for row in rows})
        draw(inputs, self.number)
        assert server.backend.gate.select(inputs.batch) == SPARSE
        server.backend.init_forward_metadata_out_graph(inputs.batch)
        self.graph.replay()
        for i, row in enumerate(rows):
            if row in self.twins:
                q = inputs.q[:, i : i + 1]
                self.twins[row].see(server, row, self.lengths[row] - 1, q)
        return self.out[:, : len(rows)].clone()

    def check(self, rows: list[int]) -> int:
        """Before another step: rows with views read on the device what their twins list; how many
        of them have one."""
        server, made = self.server, 0
        lengths = {row: self.lengths[row] + 1 for row in rows}
        server.go_on(self.inputs, lengths)
        server.backend._host_plan(self.inputs.batch)
        for row, twin in ((row, self.twins[row]) for row in rows if row in self.twins):
            view = server.requests.entry(row).view
            assert isinstance(view, DeviceView) and view.place is not None
            assert view.made == twin.view.made
            made += view.made > 0
            for layer, own in twin.view.layers.items():
                listed = server.backend.views.store.listed(view.place, layer, lengths[row])
                assert torch.equal(listed, own.listed(lengths[row])[0]), (row, layer, view.made)
                assert view.place.counts[layer] == own.counts.tolist()
        return made


@pytest.fixture
def served(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server of every method that keeps views."""
    yield Served.start(monkeypatch, (*METHODS, *view_names()))


def some(**options: Any) -> dict[int, tuple[RequestOptions, int]]:
    """Four requests of 200 to 300 tokens: three views, and one that chooses in every step."""
    return {
        1: (replace(KEEPS, **options), 300),
        2: (replace(KEEPS, method="adakv", **options), 250),
        3: (RequestOptions("quest", 128, dense_layers=0), 280),
        4: (replace(KEEPS, method="kvcompress", **options), 200),
    }


def whole(asked: dict[int, tuple[RequestOptions, int]]) -> dict[int, tuple[int, int]]:
    """All of their prompts."""
    return {row: (0, prompt) for row, (_, prompt) in asked.items()}


def test_rows_keep_what_a_cpu_keeps_through_several_renewals(served: Served) -> None:
    """Captured before any request came; made when the prompt was read, and again every 3 tokens."""
    asked, rows = some(), [1, 2, 3, 4]
    served.admit(asked)
    served.prefill(whole(asked))
    made = set()
    for _ in range(8):
        assert served.check(rows) == 3
        served.decode(rows)
        made.add(served.twins[1].view.made)
    assert made == {300, 303, 306}
    tickets = served.server.backend.step.buffers.tickets
    assert not tickets.any(), "a split waits for ever on one left"


@pytest.mark.parametrize("method", ["h2o", "pyramidkv"])
def test_the_other_methods_keep_it_too(served: Served, method: str) -> None:
    served.admit({5: (replace(KEEPS, method=method), 260)})
    served.prefill({5: (0, 260)})
    for _ in range(4):
        assert served.check([5]) == 1
        served.decode([5])


def test_a_replay_equals_an_eager_step_and_the_step_of_a_cpu(served: Served) -> None:
    """To the bit the one; the other is the reference over what the twins list."""
    from sgl_sparsekv.ops import load_ops
    from sgl_sparsekv.views import lists_of

    asked, rows = some(), [4, 1, 3, 2]
    served.admit(asked)
    served.prefill(whole(asked))
    listed = {row: dict(twin.view.layers) for row, twin in served.twins.items()}
    out, batch = served.decode(rows), served.inputs
    assert torch.equal(served.server.step(batch)[:, :4], out)
    for place, row in ((place, row) for place, row in enumerate(rows) if row in listed):
        slots = served.server.table[row, : served.lengths[row]]
        for layer in range(LAYERS):
            q = batch.q[layer, place].view(1, HEADS, GROUP, DIM)
            how = (lists_of([listed[row][layer]], [slots]), layer_of(layer).scaling)
            cache = served.server.pool.get_kv_buffer(layer)
            want, _ = load_ops("reference").attend_lists(q, *cache, *how)
            got = out[layer, place].view_as(want)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_row_beside_views_gets_the_bits_of_a_server_without(
    served: Served, sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same row, queries and keys; on the other server nobody keeps a view."""
    plain = Served.start(monkeypatch, METHODS)
    assert plain.server.backend.views is None
    assert plain.server.backend.step.buffers.views is None
    asked = some()
    found = []
    for one, kept in ((served, True), (plain, False)):
        own = asked if kept else {
            row: (options if row == 3 else RequestOptions("full"), prompt)
            for row, (options, prompt) in asked.items()
        }  # fmt: skip
        one.admit(own)
        one.prefill(whole(own))
        found.append([one.decode([1, 2, 3, 4]) for _ in range(2)])
    for beside, without in zip(*found, strict=True):
        assert torch.equal(beside[:, 2], without[:, 2])
        assert not torch.equal(beside[:, 0], without[:, 0])


def test_a_hit_chunks_and_a_prompt_read_at_once_keep_the_same(served: Served) -> None:
    """As long as the last queries are seen; those of the twin are the ones that were shown."""
    served.admit(dict.fromkeys((1, 2, 3), (KEEPS, 300)))
    served.prefill({1: (0, 300)})
    served.prefill({2: (285, 300)})
    for end in (120, 296, 300):
        served.prefill({3: (served.lengths.get(3, 0), end)})
    assert served.check([1, 2, 3]) == 3


def test_a_renewal_that_a_retraction_came_before_is_made_as_it_would_have_been(
    served: Served,
) -> None:
    """The step behind it is a prefill of one token more; its keys are read anew."""
    served.admit({1: (KEEPS, 300)})
    served.prefill({1: (0, 300)})
    for _ in range(3):
        served.check([1])
        served.decode([1])
    view = served.server.requests.entry(1).view
    assert isinstance(view, DeviceView) and (view.made, view.due) == (300, 303)
    served.prefill({1: (303, 304)})
    assert served.check([1]) == 1 and view.made == 303


def test_tokens_that_are_taken_back_take_the_view_with_them(served: Served) -> None:
    served.admit({1: (KEEPS, 300)})
    served.prefill({1: (0, 300)})
    served.check([1])
    served.decode([1])
    view = served.server.requests.entry(1).view
    served.lengths[1] = 290
    served.twins.clear()
    out = served.decode([1])
    assert view is not None and view.made == 0 and out.isfinite().all()
    assert not served.server.backend.step.buffers.views.viewed[1, 0], "everything is read again"


def test_a_step_in_which_nothing_is_due_waits_for_nothing(served: Served) -> None:
    asked, rows = some(renew_every=128), [1, 2, 3, 4]
    served.admit(asked)
    served.prefill(whole(asked))
    served.decode(rows)
    for row in rows:
        served.lengths[row] += 1
    served.server.go_on(served.inputs, served.lengths)
    with Quiet():
        served.server.backend.gate.select(served.inputs.batch)
        served.server.backend.init_forward_metadata_out_graph(served.inputs.batch)


def test_three_launches_per_layer_with_views_too(served: Served) -> None:
    once = ["forget_kernel", "begin_kernel"]
    each = ["score_kernel", "select_kernel", "attend_kernel"]
    assert served.graph.launches == [*once, *each * LAYERS, "seal_kernel"]


def test_a_request_for_which_there_is_no_room_reads_everything(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once; when another ends, its queries are noted, and it gets its view."""
    store, brief = served.server.backend.views.store, replace(KEEPS, observation_window=2)
    taken = store._queries.take(store._queries.widest - 3 * LAYERS)
    served.admit(dict.fromkeys((1, 2), (brief, 300)))
    served.prefill({1: (0, 300)})
    served.prefill({2: (0, 300)})
    views = [served.server.requests.entry(row).view for row in (1, 2)]
    served.twins.pop(2)
    assert served.check([1, 2]) == 1 and views[1].place is None and taken is not None
    assert sum("no room for the view" in text for text in caplog.messages) == 1
    views[0].end()
    assert views[0].place is None
    for _ in range(3):
        served.decode([2])
    assert views[1].made == 302


def test_a_server_says_how_much_room_there_is(served: Served) -> None:
    backend = served.server.backend
    told = backend._told(backend.step.shape, 1)
    assert f"views of {backend.step.shape.views.kept} tokens over layers and KV heads" in told
    assert backend.step.shape.views.kept >= CONTEXT * HEADS * LAYERS
