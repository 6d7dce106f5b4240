"""Small files of every kind that the page shows, made by whoever writes them in earnest."""

import json
import shutil
from pathlib import Path
from typing import Any

from bench import record
from bench.model import Workload
from bench.serve import results as sweep
from bench.serve.grid import Point, Variant
from sgl_sparsekv.evaluation.results import Cell, Results
from sgl_sparsekv.serving.trace import SelectionRecord, encode

BENCH = Path(__file__).parents[2] / "bench" / "results"
REAL = ("kernels-cpu-20261121-152408", "quality-text-20261121-150418", "serve-cpu-20261121")
ODD = '<b>"odd" & co</b>'
"""What must be escaped wherever it stands."""
ENVIRONMENT = {
    "when": "2026-11-21T12:00:00+00:00",
    "machine": f"{ODD} machine",
    "sgl_sparsekv": "0.1.0",
    "commit": "abc123",
    "sglang": "0.5.23",
    "torch": "2.14.1",
    "transformers": "5.19.0",
    "threads": "2",
}
KV_BYTES, SHARE, LAYERS, STEPS = 512, 0.0625, 2, 6
LENGTHS, DEPTHS, BUDGETS = (4096, 8192), 3, (256, 512)


def cell(method: str, budget: int, length: int, nth: int, **change: Any) -> Cell:
    """A question that `streaming` fails and all others answer."""
    read = length if method == "full" else budget
    values: dict[str, Any] = {
        **{"task": "needle", "length": length, "sample": 0, "nth": nth, "method": method},
        **{"budget": budget, "metric": "words right", "value": float(method != "streaming")},
        **{"place": (nth + 0.5) / DEPTHS, "expected": (ODD,), "said": ODD, "seconds": 0.1},
        **{"prompt_tokens": length, "cached_tokens": length - 1, "decode_steps": STEPS},
        "tokens_attended": read * STEPS * LAYERS,
        "tokens_in_context": length * STEPS * LAYERS,
    }
    return Cell(**{**values, **change})


def needle(path: Path, **change: Any) -> list[Cell]:
    """A needle run: full, quest and streaming at two budgets."""
    settings = {"model": f"/models/{ODD}", "lengths": LENGTHS, "depths": DEPTHS, "budgets": BUDGETS}
    results = Results(path, "needle", {**settings, "protocol": "prefilled", "seed": 0}, False)
    about = {
        "environment": ENVIRONMENT,
        "kv_bytes_per_token": KV_BYTES,
        "metadata_share": {"full": 0.0, "quest": SHARE, "streaming": 0.0},
    }
    for method in ("full", "quest", "streaming"):
        for budget in BUDGETS[:1] if method == "full" else BUDGETS:
            for length in LENGTHS:
                for nth in range(DEPTHS):
                    results.add(cell(method, budget, length, nth, **change), about)
    return results.cells


def perplexity(path: Path) -> None:
    """A run whose metric is better when lower."""
    results = Results(path, "perplexity", {"model": "m", "budgets": BUDGETS}, False)
    about = {"environment": ENVIRONMENT, "kv_bytes_per_token": KV_BYTES}
    for method, value in (("full", 1.0), ("quest", 1.1), ("streaming", 6.0)):
        change = {"task": "perplexity", "metric": "nll", "value": value, "detail": {"tokens": 64}}
        results.add(cell(method, 256, 4096, 0, **change), about)


def selection(step: int, layer: int, rid: str = "a", **change: Any) -> SelectionRecord:
    """Two KV heads that share units 0, 9 and one that moves with the step, of 10 units."""
    values: dict[str, Any] = {
        **{"step": step, "layer": layer, "rid": rid, "method": "quest", "length": 160},
        **{"units": [[0, step % 8 + 1, 9], [0, 9]], "unit_size": 16, "tp_rank": 0},
    }
    return SelectionRecord(**{**values, **change})


def trace(path: Path, rids: tuple[str, ...] = ("a", ODD), header: bool = True) -> None:
    """Four steps of some requests: layer 0 reads everything, two others select."""
    lines = [json.dumps({"kind": "trace", "schema": 1, "environment": ENVIRONMENT}).encode()]
    lines = lines if header else []
    for step in range(4):
        for rid in rids:
            everything = {"method": "full", "units": [list(range(10))] * 2}
            lines.append(encode(selection(step, 0, rid, **everything)))
            lines += [encode(selection(step, layer, rid)) for layer in (1, 2)]
    path.write_bytes(b"\n".join([*lines, b'{"kind": "end", "lost": 3}\n' if header else b""]))


def gpu(folder: Path) -> None:
    """A GPU run of made-up times, to see that they are drawn."""
    run = record.header("h200", bandwidth=4.0, commit="abc123")
    rows = [
        record.row("attention", Workload(context, batch), us, run, peer=("fa3", us * 7))
        for batch in (1, 8)
        for context, us in ((32768, 40.0 * batch), (131072, 90.0 * batch))
    ]
    record.save(run, rows, folder)


def serving(path: Path) -> None:
    """A sweep of made-up times."""
    variants = [Variant("torch_native"), Variant("sparsekv", "quest", 512)]
    rows = []
    for i, variant in enumerate(variants, 1):
        for workload, context, load, rate in (
            *(("hit", 4096, 1, None), ("hit", 16384, 1, None), ("cold", 4096, 1, None)),
            *(("shared", 8192, 1, None), ("shared", 8192, 4, None), ("shared", 8192, 0, 0.5)),
            *(("offline", 4096, 4, None), ("program", 4096, 4, None)),
        ):
            point = Point(workload, variant, context, load, 4, rate)
            found = {"requests": 4, "requests_per_s": 1.0, "seconds": 1.0}
            found |= {"command": [], "tool": {}}
            found |= {"tokens_per_s": 10.0 * i, "ttft_ms": 90.0, "itl_ms": 80.0 / i}
            found |= {"itl_p99_ms": 100.0 / i, "goodput_per_s": 0.25 * i, "goodput_share": 0.5}
            rows.append(sweep.Row.of(point, **found))
    header = sweep.Header(
        *(ENVIRONMENT, "cpu", [], f"model {ODD}", [], {}, [f"the backend {ODD}"]),
        *({"ttft": 1000.0, "itl": 50.0}, {}, [0.5, 1.5], 12.0),
    )
    sweep.save(sweep.Result(header, rows, [sweep.Failure(f"hit {ODD}", "it died")]), path)


def told(method: str, **change: Any) -> dict[str, Any]:
    """What an answer tells of a view of two layers with two KV heads: 40 of 200 tokens each."""
    view = {
        **{"made": 200, "since": 7, "kept": {"3": [40, 40], "10": [50, 30]}},
        "mass": {"3": [0.5, 0.75], "10": [0.9, 1.0]},
        "map": {"3": [[0, 20, 160, 20], [20, 40, 140]], "10": [[150, 50], [0, 10, 170, 20]]},
    }
    report = {"method": method, "budget": 40, "view": {**view, **change}, "rejected": None}
    return {**report, "telemetry": {"attention_mass": {"mean": 0.625}}}


def answers(path: Path) -> None:
    """Native, an answer of `quest`, two choices of a chat, and what stands under `sparsekv`."""
    both = [told("snapkv"), told("h2o", made=100, map={}, mass={})]
    lines = [
        {"text": ODD, "meta_info": {"id": "a", "sparsekv": told(ODD)}},
        {"text": ODD, "meta_info": {"sparsekv": {"method": "quest", "view": None}}},
        {"id": "b", "choices": [{}, {}], "metadata": {"sparsekv": both}},
        told("adakv"),
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def coverage(path: Path, **change: object) -> None:
    """Two methods asked for two shares; of one of them the heads of three layers are there."""
    rows = [
        {
            **{"context": 8192, "method": method, "asked": asked, "budget": None, "split": "even"},
            **{"got": asked + off, "got_p10": asked - 0.1, "tokens": 700.0, "error": 0.1},
            **{"metadata_bytes": 9.0, "kv_bytes": 90.0, "error_p90": 0.2},
        }
        for method, off in (("quest", 0.004), ("clusterkv 16/1024", -0.03))
        for asked in (0.9, 0.95)
    ]
    rows[1]["heads"] = [[1.0, 0.75], [0.9, 0.5], [0.99, 0.98]]
    rows.append({**rows[0], "asked": None, "budget": 512, "got": 0.93})
    head = {"schema": 1, "model": "small", "about": "a model", "environment": ENVIRONMENT}
    path.write_text(json.dumps({**head, "rows": rows, **change}))


def everything(folder: Path) -> Path:
    """A folder with a file of each kind, real ones where there are some, and broken ones."""
    for name in REAL:
        (folder / "bench").mkdir(parents=True, exist_ok=True)
        shutil.copy(BENCH / f"{name}.json", folder / "bench")
    needle(folder / "needle.jsonl")
    perplexity(folder / "perplexity.jsonl")
    trace(folder / "trace.jsonl")
    gpu(folder / "gpu")
    serving(folder / "serving.json")
    coverage(folder / "coverage.json")
    answers(folder / "answers.jsonl")
    (folder / f"broken {ODD.replace('/', '')}.json").write_text('{"a": ')
    (folder / "torn.jsonl").write_text("")
    (folder / "other.json").write_text('{"schema": 7}')
    (folder / "notes.txt").write_text("not a result")
    return folder
