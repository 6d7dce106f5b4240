"""The break-even, measured at start: both captured graphs, replayed at three lengths.

Behind the capture there is no request yet, so rows of `req_to_token`, stamps and page metadata may
say what they like. For a few batch sizes rows are laid over the pool's pages, every unit counts as
summarised, with fields of random numbers so that scores differ, and the two graphs take turns.
Then all of it is as before; K and V are written where padding writes them, to slot 0.

Of what is measured only differences count: how a dense step grows with what it reads, and how far
a sparse one is from what it should then take. So it does not matter what else is in a step.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..geometry import whole_pages
from .gate import DENSE, SPARSE, BreakEven, Cost, active_gate
from .planner import HostPlan

if TYPE_CHECKING:
    from .fused import FusedBackend

logger = logging.getLogger(__name__)
BATCHES = (1, 8, 32)
"""Rows that are measured, or the next captured size; beside them the largest that the pool holds at
a length worth choosing from."""
SHARES = (4, 2, 1)
"""The lengths: these parts of the longest that fits."""
ROUNDS, REPLAYS = 3, 2
"""Times that each graph gets its turn, and replays in it. The median counts."""
MOST_SECONDS = 2.0
"""Behind this time no further length begins."""
Timer = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Measured:
    """Both graphs of a batch of equally long rows.

    Attributes:
        rows: of the batch.
        units: of each row.
        tokens: that the dense step reads in a layer.
        saved: what a sparse step does not read of them, as `HostPlan.saved_tokens`.
        dense: seconds of the dense step; sparse: of the sparse one.
    """

    rows: int
    units: int
    tokens: int
    saved: int
    dense: float
    sparse: float


@dataclass(frozen=True)
class Line:
    """Cost of choosing in batches of `rows`: `tokens`, and `per_unit` for each unit of a row."""

    rows: int
    tokens: float
    per_unit: float

    def at(self, units: int) -> float:
        """In tokens."""
        return self.tokens + self.per_unit * units


@dataclass(frozen=True)
class MeasuredCost(Cost):
    """A line for each batch size that was measured, ascending; between two of them by the rows."""

    lines: tuple[Line, ...]

    def tokens(self, rows: int, units: int) -> int:
        """See `Cost`; beyond the largest batch size as if its cost came again for more rows."""
        sizes = [line.rows for line in self.lines]
        found = float(np.interp(rows, sizes, [line.at(units) for line in self.lines]))
        return max(1, round(found * max(1.0, rows / sizes[-1])))


def fitted(points: list[Measured]) -> MeasuredCost | None:
    """The cost of choosing from what was measured; None where dense steps do not grow with length.

    With c the seconds that a dense step takes for one more token, a sparse step that cost nothing
    would take `saved * c` less than the dense one. What it takes more than that, over c, is its
    cost.
    """
    lines = []
    for rows in sorted({point.rows for point in points}):
        of_rows = [point for point in points if point.rows == rows]
        if len(of_rows) < 2:
            continue
        second_per_token = _line([p.tokens for p in of_rows], [p.dense for p in of_rows])[1]
        if second_per_token <= 0:
            continue
        costs = [p.saved - (p.dense - p.sparse) / second_per_token for p in of_rows]
        start, slope = _line([p.units for p in of_rows], costs)
        if slope < 0:  # noise: nothing gets cheaper with more to choose from
            start, slope = sum(costs) / len(costs), 0.0
        lines.append(Line(rows, start, slope))
    return MeasuredCost(tuple(lines)) if lines else None


def _line(x: list[int], y: list[float]) -> tuple[float, float]:
    slope, start = np.polyfit(x, y, 1)
    return float(start), float(slope)


def measure_break_even(result: None, runner: Any, *args: Any, **kwargs: Any) -> None:
    """After `DecodeCudaGraphRunner.__init__`: replace the gate's prediction by what is measured."""
    gate = active_gate()
    if gate is None or runner.attention_graph_variants is not gate:
        return
    backend: FusedBackend = runner.attn_backend
    if backend.options.dense_below != "auto":
        return
    reason = unmeasured(runner, backend)
    if not reason:
        reason = _measure(runner, backend, gate, event_seconds)
    if reason:
        logger.warning("sparsekv: the break-even stays predicted: %s", reason)


def unmeasured(runner: Any, backend: "FusedBackend") -> str:
    """Why a server's break-even is not measured; "" where it is."""
    if backend.paged is not None:
        return f"--sparsekv-attend {backend.options.attend} plans each step on the host"
    if runner.require_mlp_sync:
        return "attention data parallelism"
    if runner.pp_size > 1:
        return "pipeline stages"
    if runner.model_runner.lora_manager is not None:
        return "LoRA adapters"
    pool = backend.req_to_token_pool
    return "" if pool.available_size() == pool.size else "requests are running"


def _measure(runner: Any, backend: "FusedBackend", gate: BreakEven, timer: Timer) -> str:
    """Measure and let the gate go by it; gives the reason where that cannot be."""
    replays = StartReplays(runner, backend, gate, timer)
    if not replays.batches:
        return "the KV pool holds too few tokens, or the default method chooses nothing in a step"
    try:
        points = list(replays.run())
    except RuntimeError as error:  # torch's, of CUDA and of memory among them
        return str(error).partition("\n")[0]
    cost = fitted(points)
    if cost is None and replays.seconds >= MOST_SECONDS:
        return f"two lengths of a batch take longer than {MOST_SECONDS:g} s"
    if cost is None:
        return "dense steps do not take longer with longer rows"
    gate.needed = cost
    logger.info(
        "sparsekv: break-even measured in %.1f s with batches of %s: sparse %s",
        replays.seconds,
        ", ".join(str(line.rows) for line in cost.lines),
        backend.sparse_from(cost),
    )
    return ""


class StartReplays:
    """Replays of both graphs over a pool that nobody uses yet.

    Attributes:
        batches: rows of a batch -> lengths, longest last.
        seconds: what the measurement has taken, agreed upon by all ranks.
    """

    def __init__(self, runner: Any, backend: "FusedBackend", gate: BreakEven, timer: Timer) -> None:
        self.runner, self.backend, self.gate, self.timer = runner, backend, gate, timer
        self.table: torch.Tensor = backend.req_to_token_pool.req_to_token
        self.seconds = 0.0
        fitting = {rows: self._lengths(rows) for rows in runner.capture_bs if self._fits(rows)}
        fitting = {rows: lengths for rows, lengths in fitting.items() if lengths}
        wanted = {next((n for n in fitting if n >= rows), None) for rows in BATCHES}
        wanted.add(max(fitting, default=None))
        self.batches = {rows: found for rows, found in fitting.items() if rows in wanted}

    def _fits(self, rows: int) -> bool:
        return rows <= self.gate.max_rows and rows < len(self.table)

    def _lengths(self, rows: int) -> list[int]:
        """Three lengths of rows that lie side by side in the pool; none if too short to choose."""
        metadata, page = self.backend.metadata, self.backend.geometry.page_size
        slots = metadata.num_units * metadata.geometry.unit_size - page
        longest = min(whole_pages(slots // rows, page), self.table.shape[1])
        lengths = [whole_pages(longest // share, page) for share in SHARES]
        return lengths if lengths[0] and self._plan(rows, lengths[0]).saved_tokens() else []

    def _plan(self, rows: int, length: int) -> HostPlan:
        options = [self.backend.options.request] * rows
        places = np.arange(1, rows + 1)
        return HostPlan(places, np.full(rows, length), options, self.backend.geometry)

    def run(self) -> Iterator[Measured]:
        """Measure batch by batch, as long as there is time.

        Raises:
            RuntimeError: a replay failed, here or on another rank.
        """
        with summarised(self.backend.metadata):
            for rows, lengths in self.batches.items():
                with self._laid_out(rows, lengths[-1]):
                    for length in lengths:
                        if self.seconds < MOST_SECONDS:
                            yield self._point(rows, length)

    def _point(self, rows: int, length: int) -> Measured:
        began, failure, times = time.perf_counter(), "another rank failed", [float("inf")] * 2
        try:
            times = self._times(rows, length)
        except RuntimeError as error:
            failure = str(error)
        dense, sparse, took = slowest([*times, time.perf_counter() - began])
        if dense == float("inf"):
            raise RuntimeError(failure)
        self.seconds += took
        plan = self._plan(rows, length)
        units = int(plan.plan.num_units.max())
        return Measured(rows, units, rows * length, plan.saved_tokens(), dense, sparse)

    def _times(self, rows: int, length: int) -> list[float]:
        """Seconds of a dense and of a sparse step."""
        turns = {variant: self._loaded(rows, length, variant) for variant in (DENSE, SPARSE)}
        for replay in turns.values():
            replay()
        found: dict[str, list[float]] = {variant: [] for variant in turns}
        for _ in range(ROUNDS):
            for variant, replay in turns.items():
                found[variant].append(self.timer(replay) / REPLAYS)
        return [median(found[variant]) for variant in turns]

    def _loaded(self, rows: int, length: int, variant: str) -> Callable[[], None]:
        """SGLang's own preparation of a step; gives what replays it."""
        runner = self.runner
        batch = runner.capture_prepare(rows)[0]
        batch.req_pool_indices.copy_(torch.arange(1, rows + 1))
        batch.seq_lens.fill_(length)
        batch.seq_lens_cpu.fill_(length)
        batch.seq_lens_sum = rows * length
        self.gate.forced = variant
        with runner.model_context():
            runner.load_batch(batch)
        key = runner._replay_graph_key

        def replay() -> None:
            with runner.model_context(), runner.backend.replay_session():
                for _ in range(REPLAYS):
                    runner.backend.replay(key, batch)

        return replay

    @contextmanager
    def _laid_out(self, rows: int, longest: int) -> Iterator[None]:
        """Rows 1 to `rows` of `req_to_token` lie side by side in the pool; as before afterwards."""
        page = self.backend.geometry.page_size
        place = self.table[1 : rows + 1, :longest]
        before = place.clone()
        try:
            slots = torch.arange(page, page + rows * longest, device=self.table.device)
            place.copy_(slots.view(rows, longest))
            yield
        finally:
            place.copy_(before)
            self._as_captured(rows)

    def _as_captured(self, rows: int) -> None:
        """The graphs' inputs hold what they were captured with, and the gate is asked again."""
        self.gate.forced, fill = None, self.runner.seq_len_fill_value
        self.runner.buffers.seq_lens[:rows].fill_(fill)
        self.runner.buffers.seq_lens_cpu[:rows].fill_(fill)
        self.runner.buffers.reset_index_buffers()


@contextmanager
def summarised(metadata: Any) -> Iterator[None]:
    """Every unit is stamped and its fields are random numbers; afterwards as in an unused pool."""
    stamps = metadata.sealed.clone()
    noise = torch.Generator(metadata.sealed.device).manual_seed(0)  # not the one that samples
    fields = [
        metadata.fields(summary.name, layer)
        for summary in metadata.summaries
        for layer in range(metadata.layout.num_layers)
    ]
    with ExitStack() as afterwards:
        afterwards.callback(metadata.sealed.copy_, stamps)
        for field in fields:
            afterwards.callback(field.zero_)
            field.normal_(generator=noise)
        metadata.sealed.fill_(True)
        yield


def slowest(seconds: list[float]) -> list[float]:
    """The most of each over the ranks that share a step, so that all of them choose alike."""
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().tp_group
    if group.world_size == 1:
        return seconds
    found = torch.tensor(seconds, dtype=torch.float64)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group.cpu_group)
    most: list[float] = found.tolist()
    return most


def event_seconds(run: Callable[[], Any]) -> float:
    """Seconds on the device between the begin and the end of what `run` launches."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
