"""Points that `sglang.benchmark.serving` measures: prompts of random ids, and shared prefixes."""

from collections.abc import Callable
from typing import Any

from bench.serve.counters import KvRead
from bench.serve.grid import PAGE_SIZE, QUESTION, Grid, Point
from bench.serve.model import Model
from bench.serve.results import Row
from bench.serve.servers import sampling
from bench.serve.tool import PointFailed, ServingTool
from bench.serve.worker import MODULE


def measure_serving(point: Point, grid: Grid, model: Model, url: str, tool: ServingTool) -> Row:
    """One point of `cold`, `hit` or `shared`.

    Raises:
        PointFailed: the tool failed, or the cache did not hold what the point is about.
    """
    arguments = serving_arguments(point, grid, model, url)
    counted = KvRead(url)
    found = tool.run(arguments, grid.timeout)
    return row(point, found, counted.share(), arguments)


def serving_arguments(point: Point, grid: Grid, model: Model, url: str) -> list[str]:
    """Arguments of the tool for one point.

    Prompts of a context depend on the seed alone: a `hit` finds what the `cold` point before it
    left. A shared prefix is there from the warm-up request on. On a CPU nothing is compiled when a
    method is first used, and a dense peer's prefix hit takes long: there a `hit` has no warm-up.
    """
    cold = point.workload == "cold"
    warm = point.workload == "shared" or (not cold and grid.device != "cpu")
    arguments = [
        *("--backend", "sglang", "--base-url", url, "--model", str(model.folder)),
        *("--tokenizer", str(model.tokenizer), "--tokenize-prompt", "--seed", str(grid.seed)),
        *("--disable-tqdm", "--cache-report", "--output-details"),
        *("--warmup-requests", "1" if warm else "0"),
        *("--extra-request-body", sampling(point.variant.options, grid.tokens)),
        *("--goodput", *(f"{name}:{limit:g}" for name, limit in grid.goodput.items())),
        *_DATASETS[point.workload](point, grid),
    ]
    if cold:
        arguments.append("--flush-cache")
    if point.rate is not None:
        return [*arguments, "--request-rate", f"{point.rate:g}"]
    return [*arguments, "--max-concurrency", str(point.concurrency)]


def row(point: Point, found: dict[str, Any], kv_read: float | None, arguments: list[str]) -> Row:
    """What the tool found, in our words.

    Raises:
        PointFailed: fewer tokens came from the cache than the point is about, or more.
    """
    cached = sum(found["cached_tokens"]) / len(found["cached_tokens"])
    expected = {"cold": 0, "hit": point.context - PAGE_SIZE, "shared": point.context}
    wanted = expected[point.workload]
    if not wanted <= cached <= wanted + PAGE_SIZE or (wanted == 0 and cached):
        raise PointFailed(
            f"{cached:,.0f} tokens of a prompt came from the cache, not {wanted:,} as they must"
        )
    return Row.of(
        point,
        requests=found["completed"],
        tokens_per_s=found["output_throughput"],
        requests_per_s=found["request_throughput"],
        seconds=found["duration"],
        command=["python", "-m", MODULE, *arguments],
        tool=found,
        ttft_ms=found["median_ttft_ms"],
        ttft_p99_ms=found["p99_ttft_ms"],
        itl_ms=found["median_itl_ms"],
        itl_p99_ms=found["p99_itl_ms"],
        tpot_ms=found["median_tpot_ms"],
        cached_tokens=cached,
        kv_read=kv_read,
        goodput_share=found["slo_attainment"],
        goodput_per_s=found["request_goodput"],
    )


def _random_ids(point: Point, grid: Grid) -> list[str]:
    return [
        *("--dataset-name", "random-ids", "--num-prompts", str(point.requests)),
        *("--random-input-len", str(point.context), "--random-output-len", str(grid.tokens)),
        *("--random-range-ratio", "1.0"),
    ]


def _shared_prefix(point: Point, grid: Grid) -> list[str]:
    return [
        *("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "1"),
        *("--gsp-prompts-per-group", str(point.requests), "--num-prompts", str(point.requests)),
        *("--gsp-system-prompt-len", str(point.context), "--gsp-question-len", str(QUESTION)),
        *("--gsp-output-len", str(grid.tokens)),
        # Else the tool takes prompts from a file in the home folder whose name says nothing of the
        # vocabulary: those of another model.
        "--gsp-send-routing-key",
    ]


_DATASETS: dict[str, Callable[[Point, Grid], list[str]]] = {
    "cold": _random_ids,
    "hit": _random_ids,
    "shared": _shared_prefix,
}
