"""Points that `sglang.benchmark.offline_throughput` measures: an engine of its own, no server."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.serve.documents import Documents
from bench.serve.grid import OURS, QUESTION, Grid, Point
from bench.serve.results import Row
from bench.serve.tool import PointFailed
from sgl_sparsekv.tooling.servers import ServerSpec, last_words

MODULE = "sglang.benchmark.offline_throughput"
LOADER = "sgl_sparsekv.with_plugins"
WARMUP_REQUESTS = 16
"""Rows of the data set that the tool warms up with, at most."""


def measure_offline(
    point: Point, grid: Grid, spec: ServerSpec, documents: Documents, folder: Path
) -> Row:
    """One point of `offline`: all requests at once, on one shared prefix.

    Raises:
        PointFailed: the tool failed or took too long.
    """
    name = f"offline-{point.variant.name}-{point.context}".replace(" ", "-")
    data, output = folder / f"{name}.json", folder / f"{name}.jsonl"
    data.write_text(json.dumps(dataset(documents, point)))
    command = offline_command(point, grid, spec, data, output)
    _run(command, folder / f"{name}.log", grid.timeout)
    return row(point, json.loads(output.read_text().splitlines()[-1]), command)


def offline_command(
    point: Point, grid: Grid, spec: ServerSpec, data: Path, output: Path
) -> list[str]:
    """Our backend is not known to the tool before plugins are loaded; a peer runs it as it is."""
    loader = [LOADER] if spec.name == OURS else []
    command = [
        *("python", "-m", *loader, MODULE, *spec.flags),
        *("--dataset-name", "random", "--dataset-path", str(data)),
        *("--num-prompts", str(point.requests), "--seed", str(grid.seed)),
        *("--random-input-len", str(point.context + QUESTION)),
        *("--random-output-len", str(grid.tokens), "--random-range-ratio", "1.0"),
        *("--result-filename", str(output)),
    ]
    if point.variant.options is None:
        return command
    # Unlike the serving tool, this one puts the dictionary into the sampling parameters.
    body = {"custom_params": {"sparsekv": point.variant.options}}
    return [*command, "--extra-request-body", json.dumps(body)]


def dataset(documents: Documents, point: Point) -> list[dict[str, Any]]:
    """Conversations on one document, in the form that the tool calls `random`.

    Its `generated-shared-prefix` would keep prompts in the home folder under a name that says
    nothing of the vocabulary, and it warms up with a data set of this form in any case.
    """
    document = documents.text(point.context)
    questions = [
        documents.text(QUESTION, str(i)) for i in range(max(point.requests, WARMUP_REQUESTS))
    ]
    return [
        {"conversations": [{"value": f"{document} {question}"}, {"value": "."}]}
        for question in questions
    ]


def row(point: Point, found: dict[str, Any], command: list[str]) -> Row:
    """What the tool found, in our words; it tells neither latencies nor cached tokens."""
    return Row.of(
        point,
        requests=found["successful_requests"],
        tokens_per_s=found["output_throughput"],
        requests_per_s=found["request_throughput"],
        seconds=found["total_latency"],
        command=command,
        tool=found,
    )


def _run(command: list[str], log: Path, timeout: int) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **quiet},
            start_new_session=True,
        )
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise PointFailed(f"{MODULE} took longer than {timeout} s (its log is {log})") from None
    finally:
        # The engine's processes are in the tool's group, and may outlive it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if status:
        raise PointFailed(f"{MODULE} ended with {status}: {last_words(log)} (its log is {log})")
