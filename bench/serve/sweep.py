"""The sweep: servers one after the other, their points, and what went wrong."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.serve.documents import Documents
from bench.serve.grid import Grid, Point, offline, plan
from bench.serve.model import Model
from bench.serve.offline import measure_offline
from bench.serve.programs import measure_program
from bench.serve.results import Failure, Row, as_row
from bench.serve.tool import PointFailed, ServingTool
from bench.serve.workloads import measure_serving
from sgl_sparsekv.tooling.journal import Journal
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.servers import ServerFailed, ServerProcess, ServerSpec, serve

MAX_DEATHS = 2
"""A server that died so often is not started again."""
SETTLE_SECONDS = 10.0
"""A server whose scheduler died needs some seconds to end."""


@dataclass
class Sweep:
    """One run of a grid.

    Attributes:
        grid: what is measured.
        model: what is served.
        specs: servers by name.
        folder: logs, and files of the tools.
        progress: told what is being measured.
        journal: rows by point; those that it has are not measured again.
        rows: what was found so far.
        failures: what could not be measured.
        commands: command lines of servers that were started.
    """

    grid: Grid
    model: Model
    specs: dict[str, ServerSpec]
    folder: Path
    progress: Progress
    journal: Journal = field(default_factory=Journal)
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> None:
        """Measure every point; a failure is kept as a sentence and the next point follows."""
        layers = self.model.dense_layers
        served = {name: plan(self.grid, name, layers) for name in self.grid.servers}
        alone = offline(self.grid, layers)
        self.journal.expect(len(alone) + sum(len(points) + 1 for points in served.values()))
        # Imported while the first server starts.
        with ServingTool(self.folder) as tool:
            documents = Documents(self.model.tokenizer, self.grid.seed)
            for name, points in served.items():
                self._server(name, self._left(points), tool, documents)
        for point in self._left(alone):
            self._offline(point, documents)

    def _left(self, points: Sequence[Point]) -> list[Point]:
        """Points that the journal lacks; the rows of the others are taken from it."""
        found = {point.words: self.journal.get(point.words) for point in points}
        self.rows += [as_row(row) for row in found.values() if row is not None]
        return [point for point in points if found[point.words] is None]

    def _server(
        self, name: str, left: Sequence[Point], tool: ServingTool, documents: Documents
    ) -> None:
        points, deaths = deque(left), 0
        command = f"command of {name}"
        if not points:
            self.commands[name] = self.journal.get(command) or []
        while points and deaths < MAX_DEATHS:
            try:
                with serve([self.specs[name]], self.folder, self.progress) as running:
                    words = [w.replace(str(self.folder), "FOLDER") for w in running[name].command]
                    self.commands[name] = self.journal.once(command, words.copy)
                    while points:
                        self._point(points.popleft(), running[name], tool, documents)
            except ServerFailed as error:
                # One that does not start would not start for the next point either.
                deaths = deaths + 1 if name in self.commands else MAX_DEATHS
                self._fail_all(points if deaths == MAX_DEATHS else (), str(error))

    def _point(
        self, point: Point, server: ServerProcess, tool: ServingTool, documents: Documents
    ) -> None:
        """One point.

        Raises:
            ServerFailed: the server ended; the point is among the failures.
        """
        self.progress.wait(point.words)
        try:
            if point.workload == "program":
                row = measure_program(point, self.grid, server.url, documents)
            else:
                row = measure_serving(point, self.grid, self.model, server.url, tool)
        except (PointFailed, OSError) as error:
            try:
                _settle(server)
            except ServerFailed as death:
                self._fail_all([point], str(death))
                raise
            self._fail_all([point], str(error))
        else:
            self._keep(point, row)

    def _offline(self, point: Point, documents: Documents) -> None:
        self.progress.wait(f"{point.words}: an engine of its own starts")
        spec = self.specs[point.variant.server]
        try:
            self._keep(point, measure_offline(point, self.grid, spec, documents, self.folder))
        except (PointFailed, OSError) as error:
            self._fail_all([point], str(error))

    def _keep(self, point: Point, row: Row) -> None:
        self.rows.append(row)
        self.journal.once(point.words, lambda: asdict(row))
        found = f"{row.tokens_per_s:.1f} tokens/s"
        if row.itl_ms is not None:
            found = f"first token {row.ttft_ms:,.0f} ms, then {row.itl_ms:.1f} ms each; {found}"
        self.progress.say(f"{point.words}: {found}")

    def _fail_all(self, points: Sequence[Point] | deque[Point], reason: str) -> None:
        for point in points:
            self.failures.append(Failure(point.words, reason))
            self.progress.say(f"{point.words}: failed: {reason}")


def _settle(server: ServerProcess) -> None:
    """Wait until a server answers again after a point that failed.

    Raises:
        ServerFailed: it ended.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while not server.ready() and time.monotonic() < deadline:
        time.sleep(0.5)
