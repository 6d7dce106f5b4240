"""A small grid, a line that `sglang.benchmark.serving` wrote for it, and a whole result."""

import json
from dataclasses import asdict
from typing import Any

from bench.serve.grid import Grid, Point, Variant, offline, plan
from bench.serve.results import Header, Result, Row

GRID = Grid(
    device="cpu",
    peers=("torch_native",),
    methods=("quest", "clusterkv"),
    budgets=(256, 512),
    contexts=(1024, 2048),
    load_budgets=(256,),
    load_contexts=(2048,),
    concurrency=(1, 2),
    rates=(),
    requests=1,
    rounds=2,
    tokens=16,
    goodput={"ttft": 5000.0, "tpot": 50.0},
    workloads=("cold", "hit", "shared", "offline", "program"),
    seed=1,
    timeout=900,
)
QUEST = Variant("sparsekv", "quest", 256, 1)
RECORDED: dict[str, Any] = {
    "backend": "sglang",
    "dataset_name": "generated-shared-prefix",
    "request_rate": float("inf"),
    "max_concurrency": 2,
    "server_info": {"model_path": "..."},
    "duration": 0.8422,
    "completed": 4,
    "total_output_tokens": 64,
    "request_throughput": 4.749,
    "output_throughput": 75.99,
    "median_ttft_ms": 128.3,
    "p99_ttft_ms": 141.9,
    "median_itl_ms": 18.1,
    "p99_itl_ms": 35.2,
    "median_tpot_ms": 18.6,
    "slo_attainment": 1.0,
    "request_goodput": 4.749,
    "input_lens": [2112] * 4,
    "output_lens": [16] * 4,
    "cached_tokens": [2048] * 4,
    "ttfts": [0.12, 0.13, 0.13, 0.14],
    "itls": [[0.018] * 15] * 4,
    "errors": [""] * 4,
    "generated_texts": ["w1 w2"] * 4,
}


def recorded(**changes: Any) -> str:
    """The tool's file: an older line, and the newest."""
    return "{}\n" + json.dumps({**RECORDED, **changes}) + "\n"


def sample_row(point: Point) -> Row:
    """A row with figures that depend on the point alone."""
    dense = point.variant.method is None
    step = (40.0 if dense else 8.0) * point.context / 1024
    latencies: dict[str, Any] = {}
    if point.workload in ("cold", "hit", "shared"):
        latencies = {
            **{"ttft_ms": 100.0, "ttft_p99_ms": 120.0, "itl_ms": step, "itl_p99_ms": 2 * step},
            **{"tpot_ms": step, "goodput_share": 1.0, "goodput_per_s": 1000 / step},
            "cached_tokens": 0.0 if point.workload == "cold" else float(point.context),
            "kv_read": None if dense else 0.5,
        }
    return Row.of(
        point,
        requests=point.requests,
        tokens_per_s=1000 / step,
        requests_per_s=1.0,
        seconds=1.5,
        command=["python", "-m", "tool"],
        tool={"output_lens": [16]},
        **latencies,
    )


def sample_result() -> Result:
    """Every point of the grid, measured."""
    points = [p for name in GRID.servers for p in plan(GRID, name, 1)] + offline(GRID, 1)
    header = Header(
        environment={
            **{"machine": "a <machine>", "sglang": "0.5.23", "torch": "2.14", "commit": None},
            **{"when": "2026-11-21T00:00:00+00:00", "threads": "2"},
        },
        device="cpu",
        gpu=[],
        model="a model",
        command=["python", "-m", "bench.serve"],
        servers={"torch_native": ["python"], "sparsekv": ["python"]},
        differences=["torch_native: --attention-backend torch_native"],
        goodput=GRID.goodput,
        grid={key: list(v) if isinstance(v, tuple) else v for key, v in asdict(GRID).items()},
        load_average=[0.1, 2],
        seconds=12.5,
    )
    return Result(header, [sample_row(point) for point in points], [])
