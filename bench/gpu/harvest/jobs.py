"""All jobs in their order, and the share of the time that each group of them has.

First what tells most if all goes wrong: does it compile here, which launch is wrong, what does a
launch cost; then times, the many replays, and what only explains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.gpu.harvest import candidates
from bench.gpu.harvest.checks import (
    attend,
    methods,
    plan,
    score,
    select,
    summaries,
    views,
    whole,
)
from bench.gpu.harvest.compile import PROCESSES, compile_share
from bench.gpu.harvest.dense import dense
from bench.gpu.harvest.gaps import gaps
from bench.gpu.harvest.machine import machine
from bench.gpu.harvest.profile import profile
from bench.gpu.harvest.readers import readers
from bench.gpu.harvest.replays import replays
from bench.gpu.harvest.rows import rows
from bench.gpu.harvest.sweep import ablated, swept
from bench.gpu.kernels import Run
from bench.gpu.suites import parity


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: of its entries, its log and its file.
        run: does it.
    """

    name: str
    run: Callable[[Run], None]


@dataclass(frozen=True)
class Stage:
    """Jobs that run at the same time.

    Attributes:
        name: as it is printed.
        seconds: its share of the whole; what one leaves the next ones have.
        answers: what it tells, for `docs/gpu.md`.
        jobs: its processes.
    """

    name: str
    seconds: int
    answers: str
    jobs: tuple[Job, ...]


def alone(name: str, seconds: int, answers: str, run: Callable[[Run], None]) -> Stage:
    """A stage of one process: nothing else disturbs its times."""
    return Stage(name, seconds, answers, (Job(name, run),))


STAGES = (
    alone("machine", 15, "versions, clocks, tools; whether Triton runs anything", machine),
    Stage(
        "compile", 60, "registers, spills and shared memory of every binary that is used later",
        tuple(Job(f"compile-{i}", partial(compile_share, number=i)) for i in range(PROCESSES)),
    ),
    Stage(
        "checks", 75, "each launch alone against the reference: the first wrong row, head, unit",
        (
            Job("plan", plan.check), Job("summaries", summaries.check), Job("score", score.check),
            Job("select", select.check), Job("attend", attend.check), Job("gate", whole.check),
            Job("views", views.check), Job("methods", methods.check),
            Job("select-cuda", candidates.checked), Job("early", candidates.early),
        ),
    ),
    alone("bandwidth", 15, "what memory gives; gaps between launches; idle programs", gaps),
    alone("rows", 60, "selection, attend, attention, shared prefix; in a server's buffers", rows),
    alone("dense", 25, "dense decode by our own kernel and everybody else's", dense),
    alone("readers", 40, "a layer by methods with records, finer units, held choices", readers),
    alone("sweeps", 45, "other constants of score, select and attend", swept),
    alone(
        "candidates", 20, "what could serve in place of today's kernels and launches",
        candidates.timed,
    ),
    alone("ablations", 15, "what a part of a kernel costs: the time without it", ablated),
    alone("replays", 40, "2,000 replays against one checksum; replay equals eager", replays),
    alone("profile", 40, "Nsight Compute's report of a layer", profile),
    alone("parity", 45, "the tests of the Triton kernels", parity),
)  # fmt: skip
JOBS = {job.name: job for stage in STAGES for job in stage.jobs}
"""Name -> job."""
