"""The first act: questions about a document whose answers are known, word for word."""

import time
from typing import Any

from ..tooling.progress import Progress
from ..tooling.servers import HOST, ServerProcess, ServerSpec, free_port, serve
from .answer import RequestFailed
from .options import DemoOptions
from .scenario import Scenario
from .score import RunScore
from .selections import SelectionLog
from .servers import DENSE, PAGE_SIZE, SPARSE, Sizes, pair


def exact_act(
    scenario: Scenario, options: DemoOptions, progress: Progress
) -> tuple[list[RunScore], SelectionLog]:
    """Start both servers and ask everything; figures, and what decode read.

    Raises:
        ServerFailed: a server could not be started, or went away.
        RequestFailed: a question was refused.
    """
    trace = f"tcp://{HOST}:{free_port()}"
    with serve(server_specs(scenario, options, trace), options.out, progress) as servers:
        log = SelectionLog(trace)
        try:
            runs = _ask(scenario, options, servers, progress)
            log.settle()
        finally:
            log.close()
    return runs, log


def server_specs(scenario: Scenario, options: DemoOptions, trace: str) -> list[ServerSpec]:
    """SGLang's own dense backend, and ours; all else is the same."""
    private = max(len(question.prompt.split()) for question in scenario.questions)
    private += scenario.answer_tokens + 2 * PAGE_SIZE
    longest = scenario.document_tokens + private
    # The document once, and every question and answer beside it.
    held = scenario.document_tokens + private * len(scenario.questions)
    methods = ("full", options.method, "streaming")
    sizes = Sizes(scenario.path, longest, held)
    return pair(sizes, options.device, methods, ours=("--sparsekv-trace", trace))


def sparse_runs(budget: int, method: str = "quest") -> dict[str, dict[str, Any]]:
    """Request options by run; every layer is sparse, as a demo model has few."""
    every = {"dense_layers": 0, "reselect_every": 1}
    return {
        "full": {"method": "full", **every},
        method: {"method": method, "budget": budget, **every},
        "streaming": {"method": "streaming", "budget": budget, **every},
    }


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
