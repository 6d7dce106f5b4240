"""The demo from start to end: servers, questions, figures, files."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tooling.progress import Progress
from ..tooling.servers import HOST, ServerProcess, ServerSpec, free_port, serve
from .answer import RequestFailed
from .checks import Check, check_all
from .report import page, picture
from .result import as_json, table
from .scenario import Scenario
from .score import RunScore
from .selections import SelectionLog

PAGE_SIZE = 64
DENSE, SPARSE = "torch_native", "sparsekv"


@dataclass(frozen=True)
class DemoOptions:
    """What a user may choose.

    Attributes:
        out: folder for logs and results.
        budget: tokens that the method and streaming may read per KV head and step.
        device: kernels of the sparsekv server.
        method: what the demo is about.
    """

    out: Path
    budget: int = 512
    device: str = "auto"
    method: str = "quest"


@dataclass(frozen=True)
class Outcome:
    """What a demo found.

    Attributes:
        runs: figures, in the order they were taken.
        checks: the conditions and whether they hold.
        result: the content of `demo.json`.
    """

    runs: tuple[RunScore, ...]
    checks: tuple[Check, ...]
    result: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 if every condition holds, else 1."""
        return 0 if all(check.passed for check in self.checks) else 1


def run_demo(scenario: Scenario, options: DemoOptions, progress: Progress) -> Outcome:
    """Start both servers, ask everything, write `demo.json`, `demo.html` and `demo.svg`.

    Raises:
        ServerFailed: a server could not be started, or went away.
        RequestFailed: a question was refused.
    """
    start = time.monotonic()
    trace = f"tcp://{HOST}:{free_port()}"
    specs = server_specs(scenario, options, trace)
    with serve(specs, options.out, progress) as servers:
        log = SelectionLog(trace)
        try:
            runs = _ask(scenario, options, servers, progress)
            log.settle()
        finally:
            log.close()
    seconds = time.monotonic() - start
    checks = check_all(scenario, runs, PAGE_SIZE, options.method)
    result = as_json(scenario, runs, checks, seconds, log.lost)
    html = page(scenario, runs, checks, log, result["environment"], options.method)
    (options.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "demo.html").write_text(html)
    (options.out / "demo.svg").write_text(picture(scenario, runs, log, options.method))
    return Outcome(tuple(runs), tuple(checks), result)


def server_specs(scenario: Scenario, options: DemoOptions, trace: str) -> list[ServerSpec]:
    """SGLang's own dense backend, and ours; all else is the same."""
    room = scenario.document_tokens + 512
    common = (
        *("--model-path", str(scenario.path), "--device", "cpu"),
        *("--page-size", str(PAGE_SIZE), "--context-length", str(room)),
        *("--max-total-tokens", str(_pool(scenario)), "--max-running-requests", "32"),
        # One prefill chunk: torch_native computes the whole prefix anew for every chunk.
        *("--chunked-prefill-size", str(room), "--max-prefill-tokens", str(room)),
        # Left to itself SGLang sets most of the memory aside for a chunk of this size.
        *("--mem-fraction-static", "0.6"),
        # Such a chunk can take long on a busy machine; SGLang would end itself after 300 s.
        *("--watchdog-timeout", "1800"),
        "--sleep-on-idle",  # the server that waits leaves the cores to the one that works
    )
    ours = (
        *("--attention-backend", SPARSE, "--sparsekv-trace", trace),
        *("--sparsekv-device", options.device),
        *("--sparsekv-methods", f"full,{options.method},streaming"),
    )
    return [
        ServerSpec(DENSE, (*common, "--attention-backend", DENSE)),
        ServerSpec(SPARSE, (*common, *ours)),
    ]


def sparse_runs(budget: int, method: str = "quest") -> dict[str, dict[str, Any]]:
    """Request options by run; every layer is sparse, as a demo model has few."""
    every = {"dense_layers": 0, "reselect_every": 1}
    return {
        "full": {"method": "full", **every},
        method: {"method": method, "budget": budget, **every},
        "streaming": {"method": "streaming", "budget": budget, **every},
    }


def report_lines(outcome: Outcome, out: Path) -> str:
    """What the demo prints at its end."""
    failed = [check for check in outcome.checks if not check.passed]
    lines = ["", table(outcome.runs), ""]
    lines += [f"failed: {check.text} (found: {check.found})" for check in failed]
    if not failed:
        lines.append(f"all {len(outcome.checks)} conditions hold")
    lines.append(f"see {out / 'demo.html'} and {out / 'demo.json'}")
    return "\n".join(lines)


def _ask(
    scenario: Scenario,
    options: DemoOptions,
    servers: dict[str, ServerProcess],
    progress: Progress,
) -> list[RunScore]:
    from .program import TimedEndpoint

    dense = TimedEndpoint(servers[DENSE].url)
    runs = [_one_run(DENSE, {}, dense, scenario, servers[DENSE], progress)]
    servers[DENSE].stop()
    ours = TimedEndpoint(servers[SPARSE].url)
    for name, values in sparse_runs(options.budget, options.method).items():
        endpoint = ours.with_options(**values)
        runs.append(_one_run(name, values, endpoint, scenario, servers[SPARSE], progress))
    return runs


def _one_run(
    name: str,
    options: dict[str, Any],
    endpoint: Any,
    scenario: Scenario,
    server: ServerProcess,
    progress: Progress,
) -> RunScore:
    from .program import ask_all
    from .score import score_run

    count, answered, start = len(scenario.questions), 0, time.monotonic()
    progress.say(f"{name}: reading the document ({scenario.document_tokens:,} tokens)")

    def done() -> None:
        nonlocal answered
        answered += 1
        progress.wait(f"{name}: {answered} of {count} questions, then the rest together")

    try:
        answers = ask_all(endpoint, scenario, done)
    except (RuntimeError, OSError) as error:
        server.check()  # a server that died explains more than the connection it took along
        raise RequestFailed(f"{name}: the server did not answer: {error}") from error
    score = score_run(name, options, answers, scenario)
    seconds = time.monotonic() - start
    progress.say(f"{name}: {score.correct} of {count} right, {seconds:.0f} s")
    return score


def _pool(scenario: Scenario) -> int:
    """Tokens of KV cache: the document once, and every question and answer beside it."""
    private = max(len(question.prompt.split()) for question in scenario.questions)
    private += scenario.answer_tokens + 2 * PAGE_SIZE
    tokens = scenario.document_tokens + private * len(scenario.questions) + 8 * PAGE_SIZE
    return -(-tokens // PAGE_SIZE) * PAGE_SIZE
