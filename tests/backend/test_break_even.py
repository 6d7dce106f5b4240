"""The break-even, measured at start by replaying both captured graphs."""

import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.graph_server import CONTEXT, PAGE, Inputs, Server, capture, draw

from sgl_sparsekv.backend import break_even
from sgl_sparsekv.backend.break_even import Line, Measured, MeasuredCost, fitted
from sgl_sparsekv.backend.gate import DENSE, SPARSE, PredictedCost
from sgl_sparsekv.config import RequestOptions

OPTIONS = RequestOptions("quest", 64, sink=16, window=16)
PER_TOKEN, BASE, START, PER_ROW, PER_UNIT = 1e-9, 5e-3, 140.0, 3.0, 0.5
"""Of the fake device: seconds per token and of what no attention has part in; cost of choosing, in
tokens, of a batch, for each of its rows, and for each unit of a row."""


def true_cost(rows: int, units: int) -> float:
    """What choosing costs on the fake device, in tokens."""
    return START + PER_ROW * rows + PER_UNIT * units


class Runner:
    """SGLang's graph runner as the measurement knows it; a step takes what the fake device says."""

    require_mlp_sync, pp_size, seq_len_fill_value = False, 1, 1
    model_runner = SimpleNamespace(lora_manager=None)

    def __init__(self, server: Server, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        self.attn_backend = server.backend
        self.attention_graph_variants = server.backend.gate
        self.capture_bs = list(sizes)
        self.inputs = Inputs.of(max(sizes))
        draw(self.inputs, 1)
        self.buffers = SimpleNamespace(
            seq_lens=self.inputs.lengths,
            seq_lens_cpu=self.inputs.host,
            reset_index_buffers=self.inputs.rows.zero_,
        )
        self.backend = SimpleNamespace(replay=self.replay, replay_session=nullcontext)
        self.model_context = nullcontext
        self.clock = 0.0
        self.heard: list[tuple[str, int, int]] = []
        self.on_replay: Callable[[Any], Any] = lambda key: None

    def of_size(self, size: int) -> Inputs:
        """The static inputs of a captured batch size."""
        held = self.inputs
        rows = (held.rows, held.lengths, held.host, held.slots)
        return Inputs(*(t[:size] for t in rows), *(t[:, :size] for t in (held.q, held.k, held.v)))

    def capture_prepare(self, size: int) -> tuple[Any, Any, None]:
        """The batch that a capture sees."""
        return self.of_size(size).batch, self.attn_backend, None

    def load_batch(self, batch: Any) -> None:
        """What comes before a replay."""
        variant = self.attention_graph_variants.select(batch)
        self.attn_backend.init_forward_metadata_out_graph(batch)
        self._replay_graph_key = (batch.batch_size, variant)

    def replay(self, key: tuple[int, str], batch: Any) -> None:
        """One step on the fake device."""
        self.on_replay(key)
        rows, variant = key
        length = int(batch.seq_lens[0])
        assert (batch.seq_lens == length).all() and (batch.seq_lens_cpu == length).all()
        assert batch.req_pool_indices.tolist() == list(range(1, rows + 1))
        self.heard.append((variant, rows, length))
        read = rows * length
        if variant == SPARSE:
            units = length // 16
            read += true_cost(rows, units) - rows * (length - 64 - units)
        self.clock += BASE + PER_TOKEN * read

    def seconds(self, run: Callable[[], Any]) -> float:
        """In place of CUDA's events."""
        begin = self.clock
        run()
        return self.clock - begin


@pytest.fixture
def server(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Server:
    """One rank whose break-even is measured."""
    from sglang.srt import runtime_context

    alone = SimpleNamespace(tp_group=SimpleNamespace(world_size=1))
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: alone)
    return Server(monkeypatch, request=OPTIONS, dense_below="auto")


def measure(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hook does behind SGLang's captures."""
    monkeypatch.setattr(break_even, "event_seconds", runner.seconds)
    break_even.measure_break_even(None, runner, "model runner")


def memory_of(server: Server) -> dict[str, torch.Tensor]:
    """All that a measurement must leave as it was; slot 0 is padding's."""
    backend = server.backend
    held = {
        "keys": server.pool.keys[:, 1:], "values": server.pool.values[:, 1:],
        "requests": server.table, "stamps": backend.metadata.sealed,
        "options": backend.step.buffers.options, "ratios": backend.step.buffers.ratios,
        "tickets": backend.step.buffers.tickets, "pending": backend.step.buffers.pending_count,
    }  # fmt: skip
    held |= {f"fields {n}": backend.metadata.fields("min_max", n) for n in range(2)}
    return {name: tensor.clone() for name, tensor in held.items()}


def unchanged(before: dict[str, torch.Tensor], server: Server) -> None:
    """Nothing of it differs."""
    for name, tensor in memory_of(server).items():
        assert torch.equal(before[name], tensor), name


def test_the_gate_goes_by_what_both_graphs_took(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The cost comes out as it went in, whatever else is in a step, between the sizes as well."""
    gate, runner = server.backend.gate, Runner(server)
    assert isinstance(gate.needed, PredictedCost)
    with caplog.at_level(logging.INFO):
        measure(runner, monkeypatch)
    cost = gate.needed
    assert isinstance(cost, MeasuredCost) and [line.rows for line in cost.lines] == [1, 4]
    for rows, units in ((1, 8), (2, 20), (3, 32), (4, 32)):
        assert cost.tokens(rows, units) == round(true_cost(rows, units))
    assert cost.tokens(12, 32) == round(3 * true_cost(4, 32)), "as often again as rows are more"
    assert cost.tokens(1, 0) == round(true_cost(1, 0))
    said = "measured in 0.0 s with batches of 1, 4: sparse from more than 512 tokens on alone"
    assert said in caplog.messages[-1]
    inputs = Inputs.of(4)
    for length, variant in ((208, DENSE), (240, SPARSE)):  # it saves 131, 161 tokens of some 150
        server.launch(inputs, [length], [1], 4)
        server.requests.entry(1).options = OPTIONS
        assert gate.select(inputs.batch) == variant


def test_the_graphs_take_turns_over_three_lengths(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows would lie too short in this pool; two are between others."""
    runner = Runner(server)
    measure(runner, monkeypatch)
    assert {(rows, length) for _, rows, length in runner.heard} == {
        (rows, length) for rows in (1, 4) for length in (128, 256, 512)
    }
    of_one = [variant for variant, *where in runner.heard if where == [1, 128]]
    assert of_one == [DENSE, DENSE, SPARSE, SPARSE] * (1 + break_even.ROUNDS)


def test_replays_leave_everything_as_it_was(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real graphs, over rows that stand side by side in the pool, all of them summarised."""
    monkeypatch.setattr(break_even, "ROUNDS", 1)
    monkeypatch.setattr(break_even, "MOST_SECONDS", 600.0)
    runner = Runner(server, (2,))
    inputs, graphs = runner.of_size(2), {}
    for variant in (DENSE, SPARSE):
        graphs[2, variant] = capture(server, inputs, variant)
    server.backend.metadata.sealed[5] = True
    before, seen = memory_of(server), []

    def replay(key: tuple[int, str]) -> None:
        graph, out = graphs[key]
        graph.replay()
        buffers, units = server.backend.step.buffers, int(inputs.lengths[0]) // 16
        if key[1] == SPARSE:
            seen.append(buffers.table[:2, :units].clone())
            assert int(buffers.pending_count) == 0, "every unit counts as summarised"
            logits = buffers.logits[0, 0, 0, 1 : units - 1]
            assert len(logits.unique()) == units - 2, "scores differ"
        assert (out == 77).all() == (key[1] == DENSE)

    runner.on_replay = replay
    measure(runner, monkeypatch)
    assert isinstance(server.backend.gate.needed, MeasuredCost)
    for table, length in zip(seen[:: len(seen) // 3], (128, 256, 512), strict=True):
        first = PAGE // 16 + torch.arange(2)[:, None] * (CONTEXT // 16)
        assert torch.equal(table.long(), first + torch.arange(length // 16))
    unchanged(before, server)
    assert inputs.lengths.tolist() == [1, 1] == inputs.host.tolist()
    assert not runner.inputs.rows.any() and server.backend.gate.forced is None


def test_a_replay_that_fails_leaves_the_prediction(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And everything as it was; it is said why."""
    runner, before = Runner(server), memory_of(server)
    predicted = server.backend.gate.needed

    def fail(key: tuple[int, str]) -> None:
        if key == (4, SPARSE):
            raise RuntimeError("CUDA error: out of memory\nmore of it")

    runner.on_replay = fail
    measure(runner, monkeypatch)
    assert server.backend.gate.needed is predicted and server.backend.gate.forced is None
    assert caplog.messages == [
        "sparsekv: the break-even stays predicted: CUDA error: out of memory"
    ]
    unchanged(before, server)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: setattr(r, "require_mlp_sync", True), "attention data parallelism"),
        (lambda r: setattr(r, "pp_size", 2), "pipeline stages"),
        (lambda r: setattr(r, "model_runner", SimpleNamespace(lora_manager=1)), "LoRA adapters"),
        (lambda r: setattr(r.attn_backend, "paged", 1), "--sparsekv-attend triton plans each"),
        (lambda r: r.attn_backend.req_to_token_pool.__dict__.update(size=9), "requests are"),
        (lambda r: setattr(r, "capture_bs", [8]), "the KV pool holds too few tokens"),
    ],
)
def test_where_it_cannot_be_measured_the_prediction_stands(
    change: Callable[[Any], None], reason: str, server: Server,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Nothing is replayed, and the reason is logged."""
    runner, predicted = Runner(server), server.backend.gate.needed
    change(runner)
    measure(runner, monkeypatch)
    assert server.backend.gate.needed is predicted and not runner.heard
    assert len(caplog.messages) == 1 and f"stays predicted: {reason}" in caplog.messages[0]


@pytest.mark.parametrize("named", ["predicted", 0, 500])
def test_a_named_break_even_is_not_measured(
    named: int | str, sglang: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    server = Server(monkeypatch, request=OPTIONS, dense_below=named)
    runner, needed = Runner(server), server.backend.gate.needed
    measure(runner, monkeypatch)
    assert server.backend.gate.needed is needed and not runner.heard and not caplog.messages
    assert isinstance(needed, PredictedCost) if named == "predicted" else needed == named


def test_graphs_of_others_are_left_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that asks another gate, and a process without our backend."""
    runner = Runner(server)
    runner.attention_graph_variants = object()
    measure(runner, monkeypatch)
    monkeypatch.setattr(break_even, "active_gate", lambda: None)
    measure(Runner(server), monkeypatch)
    assert not runner.heard and isinstance(server.backend.gate.needed, PredictedCost)


def test_no_length_begins_behind_the_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured by then counts: one length of a batch is no line."""
    monkeypatch.setattr(break_even, "slowest", lambda times: [*times[:2], 0.6])
    measure(runner := Runner(server), monkeypatch)
    assert {(rows, length) for _, rows, length in runner.heard} == {
        (1, 128), (1, 256), (1, 512), (4, 128)
    }  # fmt: skip
    assert [line.rows for line in server.backend.gate.needed.lines] == [1]


def test_a_device_that_is_too_slow_keeps_the_prediction(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(break_even, "slowest", lambda times: [*times[:2], 3.0])
    measure(Runner(server), monkeypatch)
    assert isinstance(server.backend.gate.needed, PredictedCost)
    assert "two lengths of a batch take longer than 2 s" in caplog.messages[0]


def test_steps_that_do_not_grow_keep_the_prediction(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(break_even, "event_seconds", lambda run: 5e-3)
    break_even.measure_break_even(None, Runner(server))
    assert isinstance(server.backend.gate.needed, PredictedCost)
    assert "dense steps do not take longer with longer rows" in caplog.messages[0]


def points(costs: list[float], per_token: float = 1.0) -> list[Measured]:
    """Of one row whose three lengths cost so much to choose from."""
    return [
        Measured(1, n, 100 * n, 90 * n, 7 + per_token * 100 * n, 7 + per_token * 10 * n + cost)
        for n, cost in zip((10, 20, 40), costs, strict=True)
    ]


def test_noise_makes_no_line_that_falls() -> None:
    """Nothing gets cheaper with more to choose from, and no dense step takes less for more."""
    (line,) = fitted(points([30, 20, 10])).lines
    assert line.per_unit == 0 and line.at(10) == pytest.approx(20) == line.at(1000)
    (line,) = fitted(points([30, 40, 60])).lines
    assert (line.tokens, line.per_unit) == pytest.approx((20, 1))
    assert fitted(points([30, 40, 60], per_token=0)) is None
    assert fitted(points([30, 40, 60])[:1]) is None
    assert MeasuredCost((Line(1, -50, 0),)).tokens(1, 10) == 1


def test_ranks_agree_on_the_slowest(tmp_path: Path) -> None:
    """Their gates must choose alike, or a collective of one waits for ever."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    found = [np.load(tmp_path / f"{rank}.npy").tolist() for rank in range(2)]
    assert found == [[3.0, float("inf"), 5.0]] * 2


def _rank(rank: int, store: str, folder: str) -> None:
    from sglang.srt import runtime_context

    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    group = SimpleNamespace(world_size=2, cpu_group=torch.distributed.group.WORLD)
    runtime_context.get_parallel = lambda: SimpleNamespace(tp_group=group)
    own = [[1.0, 2.0, 5.0], [3.0, float("inf"), 4.0]][rank]
    np.save(f"{folder}/{rank}.npy", break_even.slowest(own))
    torch.distributed.destroy_process_group()


def test_sglang_has_what_is_used_of_its_runner(sglang_plugins: None) -> None:
    """By name, in the version that we serve; and our hook is around it."""
    from sglang.srt.model_executor.runner import DecodeCudaGraphRunner

    source = inspect.getsource(DecodeCudaGraphRunner)
    for name in (
        "require_mlp_sync", "attention_graph_variants", "capture_bs", "seq_len_fill_value",
        "attn_backend", "buffers", "backend", "_replay_graph_key",
    ):  # fmt: skip
        assert f"self.{name}" in source, name
    for method, arguments in (("capture_prepare", [1]), ("load_batch", [2]), ("model_context", [])):
        inspect.signature(getattr(DecodeCudaGraphRunner, method)).bind(None, *arguments)
    prepared = inspect.getsource(DecodeCudaGraphRunner.capture_prepare)
    assert "return forward_batch, attn_backend, pp_proxy_tensors" in prepared
    assert inspect.unwrap(DecodeCudaGraphRunner.__init__) is not DecodeCudaGraphRunner.__init__


def test_sglang_fills_static_inputs_from_themselves(sglang: None) -> None:
    """The batch of `capture_prepare` is made of the very tensors that `load_batch` copies to."""
    from sglang.srt.model_executor.cuda_graph_buffer_registry import build_decode_registry

    cpu = torch.device("cpu")
    registry = build_decode_registry(
        device=cpu, max_bs=4, max_num_token=4, seq_len_fill_value=1, cache_loc_dtype=torch.int64
    )
    names = ("input_ids", "req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc")
    own = {name: registry.get_slot(name).slice_for(2, 2) for name in names}
    for number, tensor in enumerate(own.values()):
        tensor.fill_(7 + number)
    registry.fill_from(
        SimpleNamespace(**own), raw_bs=2, padded_bs=2, raw_num_tokens=2, padded_num_tokens=2
    )
    for number, name in enumerate(names):
        assert registry.get_slot(name).slice_for(2, 2).tolist() == [7 + number] * 2
