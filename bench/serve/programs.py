"""Points in SGLang's frontend language: one long document, forked, a question to each fork."""

import time
from collections.abc import Sequence
from typing import Any

from bench.serve.counters import KvRead
from bench.serve.documents import Documents
from bench.serve.grid import OURS, QUESTION, Grid, Point
from bench.serve.results import Row
from bench.serve.tool import PointFailed

NAME = "answer"
TURNS = 2


def measure_program(point: Point, grid: Grid, url: str, documents: Documents) -> Row:
    """One point of `program`: run once to fill the cache, then timed with other questions.

    Raises:
        PointFailed: a fork has no answer, or not one of the length asked for.
    """
    document = documents.text(point.context)
    backend = endpoint(point, url)
    counted = KvRead(url)
    took, answers = list[float](), list[dict[str, Any]]()
    for turn in range(TURNS):
        # No two variants ask the same: each finds the document, and nothing more, in the cache.
        questions = [
            " " + documents.text(QUESTION, f"{point.variant.name} {turn} {i}")
            for i in range(point.requests)
        ]
        start = time.perf_counter()
        answers = ask(backend, document, questions, grid)
        took.append(time.perf_counter() - start)
    return row(point, grid, took, answers, counted.share())


def endpoint(point: Point, url: str) -> Any:
    """The server as the language sees it: with the variant's options, or SGLang's own class."""
    if point.variant.server == OURS:
        from sgl_sparsekv.serving.frontend import SparseKVEndpoint

        return SparseKVEndpoint(url, **(point.variant.options or {}))
    from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

    return RuntimeEndpoint(url)


def ask(backend: Any, document: str, questions: Sequence[str], grid: Grid) -> list[dict[str, Any]]:
    """What the server says of each answer; the answers are generated together.

    Raises:
        PointFailed: as `measure_program`.
    """
    import sglang as sgl

    found: list[dict[str, Any] | None] = []
    errors: list[Exception | None] = []

    def program(s: Any) -> None:
        s += document
        forks = s.fork(len(questions))
        for fork, question in zip(forks.states, questions, strict=True):
            fork += question
            fork += sgl.gen(NAME, max_tokens=grid.tokens, temperature=0.0, ignore_eos=True)
        for fork in forks.states:
            found.append(fork.stream_executor.get_meta_info(NAME, grid.timeout))
            errors.append(fork.error())
        forks.join()

    try:
        state = sgl.function(program).run(backend=backend)
    except (RuntimeError, OSError, TimeoutError) as error:
        raise PointFailed(f"the program failed: {error}") from None
    wrong = next((one for one in (*errors, state.error()) if one is not None), None)
    if wrong is not None:
        raise PointFailed(f"the program failed: {(str(wrong).splitlines() or [''])[0][:200]}")
    lengths = [None if one is None else one["completion_tokens"] for one in found]
    if lengths != [grid.tokens] * len(questions):
        raise PointFailed(f"answers must have {grid.tokens} tokens each, got {lengths}")
    return [one for one in found if one is not None]


def row(
    point: Point,
    grid: Grid,
    took: Sequence[float],
    answers: Sequence[dict[str, Any]],
    kv_read: float | None,
) -> Row:
    """What the last turn found; the language tells no latencies within an answer."""
    seconds = took[-1]
    options = point.variant.options or {}
    backend = "SparseKVEndpoint" if point.variant.server == OURS else "RuntimeEndpoint"
    cached = [answer["cached_tokens"] for answer in answers]
    return Row.of(
        point,
        requests=len(answers),
        tokens_per_s=len(answers) * grid.tokens / seconds,
        requests_per_s=len(answers) / seconds,
        seconds=seconds,
        command=[
            f"{backend}(url{''.join(f', {name}={value!r}' for name, value in options.items())})",
            "s += document",
            f"forks = s.fork({len(answers)})",
            f"sgl.gen(max_tokens={grid.tokens}, temperature=0.0, ignore_eos=True)",
        ],
        tool={"seconds_by_turn": list(took), "cached_tokens": cached},
        cached_tokens=sum(cached) / len(cached),
        kv_read=kv_read,
    )
