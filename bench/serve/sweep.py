"""The sweep: servers one after the other, their points, and what went wrong."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.serve.documents import Documents
from bench.serve.grid import Grid, Point, offline, plan
from bench.serve.model import Model
from bench.serve.offline import measure_offline
from bench.serve.programs import measure_program
from bench.serve.results import Failure, Row
from bench.serve.tool import PointFailed, ServingTool
from bench.serve.workloads import measure_serving
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
        rows: what was found so far.
        failures: what could not be measured.
        commands: command lines of servers that were started.
    """

    grid: Grid
    model: Model
    specs: dict[str, ServerSpec]
    folder: Path
    progress: Progress
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> None:
        """Measure every point; a failure is kept as a sentence and the next point follows."""
        # Imported while the first server starts.
        with ServingTool(self.folder) as tool:
            documents = Documents(self.model.tokenizer, self.grid.seed)
            for name in self.grid.servers:
                self._server(name, tool, documents)
        for point in offline(self.grid, self.model.dense_layers):
            self._offline(point, documents)

    def _server(self, name: str, tool: ServingTool, documents: Documents) -> None:
        points = deque(plan(self.grid, name, self.model.dense_layers))
        deaths = 0
        while points and deaths < MAX_DEATHS:
            try:
                with serve([self.specs[name]], self.folder, self.progress) as running:
                    self.commands[name] = list(running[name].command)
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
