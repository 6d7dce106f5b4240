"""The GPU benchmark without a GPU: its paths run, its gates see, and its calls of others bind."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import checkout, gate, peers, run, server, steps
from bench.gpu.cascade import cascade_arguments, cascade_buffers, cascade_plan
from bench.gpu.kernels import versus
from bench.gpu.log import FAILED, Check, Entry, Fact, Log, Measured, read
from bench.gpu.parts import PARTS, Part
from bench.gpu.shapes import FULL, LLAMA, REHEARSED, TOY, Shape, make_scene
from bench.gpu.timing import Times
from bench.results_schema import load
from sgl_sparsekv.routes import load_route
from sgl_sparsekv.types import AttendShape

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = Shape(320, 2)


def bench_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench.gpu`."""
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_gate_has_contexts_that_the_budget_cuts():
    """Kernels that are right up to 64 tokens alone have passed smoke tests elsewhere."""
    assert all(shape.context > TOY.budget > 64 for shape in (*REHEARSED, SMALL))
    assert all(shape.context > LLAMA.budget > 64 for shape in FULL)
    assert max(server.LENGTHS) >= 32_000 and min(server.LENGTHS) > 64
    assert 64 < server.NARROW["budget"] < sorted(server.LENGTHS)[1]


def test_parts_are_rehearsed():
    """The rest of tier 1 is what `bench.gpu.harvest` rehearses too, at the same shapes."""
    before = sorted((ROOT / "bench" / "results").rglob("*"))
    done = bench_gpu("--rehearse", "--only", "bandwidth", "graphs")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in PARTS:
        ran = f"\nok      {name} (" in "\n" + done.stdout
        assert ran == (name in ("bandwidth", "graphs"))
    assert " 0 failed" in done.stdout
    assert sorted((ROOT / "bench" / "results").rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence():
    done = bench_gpu()
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0
    assert "no NVIDIA GPU" in done.stderr
    assert bench_gpu("--rehearse", "--only", "nothing").returncode == 2


@pytest.mark.parametrize("wrong", ["budget", "fields", "values"])
def test_the_gate_sees(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another count than planned, other scores, or another result."""
    original = gate.make_step

    def broken(*args, **kwargs):
        step = original(*args, **kwargs)
        if wrong == "budget":
            step.fused.buffers.options[:, 1] += step.unit
        elif wrong == "fields":
            decode = step.decode
            q = step.scene.q.clone()

            def other(i):
                step.scene.q.copy_(-q)
                out = decode(i)
                step.scene.q.copy_(q)
                return out

            step.decode = other
        else:
            decode = step.decode
            step.decode = lambda i: decode(i) * 1.05
        return step

    monkeypatch.setattr(gate, "make_step", broken)
    with pytest.raises(AssertionError):
        gate.gate(TOY, SMALL, 16, CPU)


def test_calls_of_flashinfer_bind():
    """A misspelt argument fails here, not on a GPU."""
    decode = pytest.importorskip("flashinfer.decode")
    cascade = pytest.importorskip("flashinfer.cascade")
    scene = make_scene(TOY, replace(SMALL, shared=True), CPU, 1)
    wrapper, like = decode.BatchDecodeWithPagedKVCacheWrapper, {"dtype": torch.int32}
    number = torch.zeros(2, **like)
    for backend in ("fa2", "fa3"):
        made = peers.decode_arguments(CPU, number, number, number, backend)
        inspect.signature(wrapper.__init__).bind(None, **made)
    plan = peers.plan_arguments(scene)
    inspect.signature(wrapper.plan).bind(None, number, number, number, **plan)
    inspect.signature(wrapper._plan_impl).bind_partial(**plan)
    inspect.signature(wrapper.run).bind(None, scene.q, peers.paged(scene, 0))
    levels = cascade.MultiLevelCascadeAttentionWrapper
    buffers = cascade_buffers(scene.pages, TOY.page, {**like, "device": CPU})
    inspect.signature(levels.__init__).bind(None, **cascade_arguments(CPU, buffers))
    inspect.signature(levels.plan).bind(None, *buffers, **cascade_plan(scene))
    inspect.signature(levels.run).bind(None, scene.q, peers.paged(scene, 0))


def test_calls_of_flash_attention_3_bind() -> None:
    """Read from the source where the library does not load."""
    import ast
    from importlib.util import find_spec

    found = find_spec("sgl_kernel")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("sgl_kernel is not installed")
    source = Path(found.submodule_search_locations[0], "flash_attn.py").read_text()
    (function,) = (
        node for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "flash_attn_with_kvcache"
    )  # fmt: skip
    known = {argument.arg for argument in function.args.args}
    scene = make_scene(TOY, SMALL, CPU, 1)
    assert {"k_cache", "v_cache", *peers.fa3_arguments(scene, scene.pages)} <= known


@pytest.mark.parametrize("name", ["fa2", "fa3", "xqa"])
def test_routes_serve_the_measured_shape(name: str) -> None:
    one = LLAMA
    shape = AttendShape(
        8, one.heads, one.group, one.dim, one.dim, 64, 512, one.dtype, CPU, True
    )  # fmt: skip
    assert load_route(name).unsupported(shape, (9, 0)) in (
        None, f"attend route {name!r} needs the package 'sgl_kernel', which is not installed",
        f"attend route {name!r} needs the package 'flashinfer', which is not installed",
    )  # fmt: skip


def answer(*tokens: tuple[int, float, float]) -> dict[str, Any]:
    """What SGLang says of tokens: token, its log probability, and that of the second best."""
    found = [[log, token, None] for token, log, _ in tokens]
    best = [[[log, token, None], [second, token + 1, None]] for token, log, second in tokens]
    return {"meta_info": {"output_token_logprobs": found, "output_top_logprobs": best}}


def test_two_servers_may_differ_where_one_wavers() -> None:
    """Behind a tie nothing is compared; a clear token that differs, or its probability, fails."""
    want = [answer((5, -0.1, -3.0), (6, -0.70, -0.72), (7, -0.1, -4.0))]
    same = server.same_until_a_tie(want, want)
    assert same.startswith("3 tokens of 1 answers equal") and same.endswith("0 ties")
    tie = [answer((5, -0.11, -3.0), (9, -0.69, -0.71), (1, -2.0, -4.0))]
    assert server.same_until_a_tie(want, tie).endswith("; 1 ties")
    for wrong, text in (
        ([answer((9, -0.1, -3.0))], "answer 0, token 0: differs by 2.9 nats"),
        ([answer((5, -0.3, -3.0))], "answer 0, token 0: its logprob differs by 0.2 nats"),
    ):
        with pytest.raises(AssertionError, match=text):
            server.same_until_a_tie([answer((5, -0.1, -3.0))], wrong)


def test_times_of_one_batch_are_read_by_shape() -> None:
    """The warm-up is not counted, and a shape that was left out moves nothing."""
    step = "Decode {}. Batch size: {}, latency: {} s, throughput: 1.00 token/s\n"

    def shape(batch: int, seconds: float) -> str:
        text = "".join(step.format(i, batch, f"{seconds + i / 1e5:.5f}") for i in range(5))
        return f"Prefill. latency: 1.0 s\n{text}Decode.  median latency: 0.00300 s\n"

    text = "Warmup ...\n" + shape(1, 9.0) + "Benchmark ...\n"
    text += shape(1, 0.003) + shape(1, 0.004) + shape(1, 0.007) + shape(8, 0.005)
    text += shape(8, 0.011) + "skipping (8, 131072, 25) due to max batch size limit\n"
    found = steps.parse(text)
    assert found[1, 8192] == Times(3000.0, pytest.approx(3020.0))
    assert found[8, 32768].least == 11000.0
    assert set(found) == {(b, n) for b in (1, 8) for n in (8192, 32768, 131072)} - {(8, 131072)}


def test_a_part_that_fails_is_recorded_and_stops_nothing(tmp_path: Path) -> None:
    log = Log(tmp_path / "x.jsonl", deadline=None)
    assert log.attempt("wrong", lambda: 1 / 0) is None
    assert log.attempt("right", lambda: "said") == "said"
    found = read(tmp_path / "x.jsonl")
    assert found == log.entries and [check.status for check in found] == ["failed", "ok"]
    assert "ZeroDivisionError" in found[0].detail
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"kind": "Che')
    assert read(tmp_path / "x.jsonl") == found
    late = Log(deadline=0.0)
    assert late.attempt("late", lambda: "said") is None and late.entries[0].status == "skipped"


def test_parts_run_as_processes(tmp_path: Path) -> None:
    """One that works, one that dies and one that has no time left."""
    plan = run.Plan([], tmp_path, tmp_path / "logs", rehearse=True)
    plan.logs.mkdir()
    good = run.run_part(PARTS["bandwidth"], plan, None)
    assert {type(entry) for entry in good} == {Check, Fact}
    bad = run.run_part(replace(PARTS["bandwidth"], name="unknown"), plan, None)
    assert [entry.status for entry in bad] == [FAILED]
    assert run.run_part(PARTS["gate"], plan, 0.0)[0].detail == "out of time"


def test_finished_parts_of_a_stopped_run_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that was cut short runs again; another card's run is not gone on with."""
    parts, ran = [PARTS["bandwidth"], PARTS["gate"], PARTS["graphs"]], []

    def run_part(part: Part, plan: run.Plan, end: float | None) -> list[Entry]:
        ran.append(part.name)
        log = Log(plan.logs / f"{part.name}.jsonl")
        log.add(Fact(f"of {part.name}", 1.0, "TB/s"))
        if ran == ["bandwidth", "gate"]:
            raise KeyboardInterrupt
        log.add(Check(part.name, "ok"))
        return log.entries

    monkeypatch.setattr(run, "run_part", run_part)
    plan = run.Plan(parts, tmp_path, tmp_path / "logs", commit="0123abc")
    with pytest.raises(KeyboardInterrupt):
        run.run_all(plan)
    assert run.run_all(replace(plan, resume=True)) == 0
    assert ran == ["bandwidth", "gate", "gate", "graphs"]
    assert "2 of 3 parts, at most 3 min left" in capsys.readouterr().out
    report = json.loads((tmp_path / "logs" / "report.json").read_text())
    assert [e["name"] for e in report["entries"] if e["kind"] == "Check"] == [p.name for p in parts]
    with pytest.raises(ValueError, match="has quick False, asked for is True"):
        run.run_all(replace(plan, resume=True, quick=True))


def test_rows_are_saved_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what had the target's peer is judged; floors count this run's bandwidth."""
    monkeypatch.setattr(run, "device_name", lambda: "NVIDIA H200")
    at, ours = (32768, 8, 64), Times(40.0, 41.0)
    entries = [
        Fact("copy bandwidth", 4.2, "TB/s"),
        Check("gate", "ok"),
        Measured("selection", *at, 9.0, 9.5),
        versus("attention", at, ours, {"a": Times(300.0, 1.0), "b": Times(280.0, 1.0)}, True),
        versus("attention", at, ours, {"torch sdpa": Times(300.0, 1.0)}, False),
        versus("attend", at, ours, {}, False),
    ]
    plan = run.Plan([], tmp_path, tmp_path, commit="0123abc")
    run.conclude(plan, entries)
    ((path,),) = [list(tmp_path.glob("h200/*.json"))]
    made, rows = load(path)
    assert made.tb_per_s == 4.2 and made.bandwidth_measured and made.commit == "0123abc"
    assert [row.targets for row in rows] == [("selection",), ("attention 32k x 8",), (), ()]
    assert rows[1].peer == "b" and rows[1].gain == 7.0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["entries"]) == len(entries)


def test_names_of_gpus_are_found():
    assert run.gpu_key("NVIDIA H100 80GB HBM3") == "h100"
    assert run.gpu_key("NVIDIA GeForce RTX 5090") == "rtx5090"
    assert run.gpu_key("NVIDIA L4") is None


def test_an_uninstalled_checkout_can_be_used():
    """With what is installed next to Triton hidden from it."""
    script = (
        "import sys\n"
        "for name in ('sglang', 'flashinfer', 'sgl_kernel'): sys.modules[name] = None\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import bench.gpu.checkout, sgl_sparsekv, bench.gpu.parts\n"
        "print(sgl_sparsekv.__file__, sys.modules['sgl_sparsekv.kernels.triton'].__file__)\n"
    )
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=env,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    package, kernels = map(Path, done.stdout.split())
    assert package == checkout.ROOT / "sgl_sparsekv" / "__init__.py"
    assert kernels == checkout.ROOT / "kernels" / "triton" / "__init__.py"


def test_docs_name_every_part():
    text = (ROOT / "docs" / "gpu.md").read_text()
    for name, part in PARTS.items():
        assert f"| `{name}` | {part.tier} | {part.answers} |" in text
