"""The grid: every question of a part in every way of reading, before the next part."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from typing import Any

from ..tooling.room import KEPT, answered
from .client import Client, EvaluationStopped, ServerInfo
from .results import Cell, Key, Results, key_of
from .settings import Reading, Settings
from .tasks.base import Outcome, Part, Task


class Grid:
    """One run of one task against one server."""

    def __init__(
        self, settings: Settings, task: Task, client: Client, say: Callable[[int, int, str], None]
    ) -> None:
        """Prepare.

        Args:
            settings: ways of reading, and how many questions at a time.
            task: what is asked.
            client: the server.
            say: told after each cell: how many are there, of how many, and what this one was.
        """
        self._settings, self._task, self._client, self._say = settings, task, client, say
        self._readings = settings.readings()

    def run(self, results: Results, about: dict[str, Any]) -> None:
        """Ask what `results` lacks, and add each answer when it is there.

        `about` goes into the header of the results. A document stays in the radix cache while its
        questions are asked; the first is asked alone, so that the others find it there.

        Raises:
            EvaluationStopped: the server cannot go on.
            ValueError: a part cannot be built.
        """
        parts, done = self._task.parts(), {cell.key for cell in results.cells}
        total = sum(part.questions for part in parts) * len(self._readings)
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            for part in parts:
                left = self._left(part, done)
                if left:
                    self._ask_part(pool, part, left, results, about, total)

    def _left(self, part: Part, done: set[Key]) -> list[tuple[int, Reading]]:
        return [
            (nth, reading)
            for reading in self._readings
            for nth in range(part.questions)
            if key_of(part, nth, reading) not in done
        ]

    def _ask_part(
        self,
        pool: ThreadPoolExecutor,
        part: Part,
        left: Sequence[tuple[int, Reading]],
        results: Results,
        about: dict[str, Any],
        total: int,
    ) -> None:
        questions = self._task.build(part)

        def ask(nth: int, reading: Reading) -> Cell:
            start = time.monotonic()
            outcome = self._task.ask(questions[nth], reading, self._client)
            return _cell(part, nth, reading, outcome, time.monotonic() - start)

        def add(cell: Cell) -> None:
            results.add(cell, about)
            self._say(len(results.cells), total, _told(cell))

        add(ask(*left[0]))
        running = [pool.submit(ask, *wanted) for wanted in left[1:]]
        try:
            self._collect(running, add)
        finally:
            for waiting in running:
                waiting.cancel()

    def _collect(self, running: Sequence[Future[Cell]], add: Callable[[Cell], None]) -> None:
        """Add what finishes; once one has failed, only what is under way already."""
        failed: Exception | None = None
        for done in as_completed(running):
            try:
                add(done.result())
            except CancelledError:
                continue
            except Exception as error:
                failed = failed or error
                for waiting in running:
                    waiting.cancel()
        if failed is not None:
            raise failed


def check_server(task: Task, info: ServerInfo) -> None:
    """Refuse what the server cannot answer before anything is asked.

    Raises:
        EvaluationStopped: a length is beyond its context, or it takes no forced tokens.
    """
    check_length(task, info.context_length)
    if task.forces and not info.forcing:
        raise EvaluationStopped(
            f"{task.name} as asked for feeds tokens in decode: the server must be started with "
            "--enable-custom-logit-processor"
        )


def check_length(task: Task, limit: int | None) -> None:
    """Refuse what a context of `limit` tokens would cut short; None is no limit.

    Raises:
        EvaluationStopped: a prompt and its answer are longer than is answered whole.
    """
    if limit is not None and task.longest > answered(limit):
        raise EvaluationStopped(
            f"lengths must be at most {answered(limit)} of the model's context of {limit} tokens, "
            f"got {task.longest}: SGLang keeps {KEPT} free"
        )


def _cell(part: Part, nth: int, reading: Reading, outcome: Outcome, seconds: float) -> Cell:
    report = outcome.report
    return Cell(
        task=part.task,
        length=part.length,
        sample=part.sample,
        nth=nth,
        method=reading.method,
        budget=reading.budget,
        metric=outcome.metric,
        value=outcome.value,
        place=outcome.place,
        expected=outcome.expected,
        said=outcome.said,
        detail=outcome.detail,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        tokens_attended=report["tokens_attended"],
        tokens_in_context=report["tokens_in_context"],
        decode_steps=report["decode_steps"],
        seconds=round(seconds, 3),
    )


def _told(cell: Cell) -> str:
    where = f"{cell.length:,} tokens, " if cell.length else ""
    return f"{cell.task}, {where}{cell.method} {cell.budget}: {cell.metric} {cell.value:.3g}"
