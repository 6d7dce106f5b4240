"""All parts, in the order in which they run: what tells most of a new GPU comes first."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from bench.gpu.cascade import shared_prefix
from bench.gpu.graphs import Bucket, Case, launches_per_layer, replay_equals_eager
from bench.gpu.kernels import Run, bandwidth, gates, kernels
from bench.gpu.log import Check
from bench.gpu.routes import routes
from bench.gpu.server import answers
from bench.gpu.shapes import UNITS
from bench.gpu.steps import steps
from bench.gpu.suites import kit, parity

TIERS = {1: ("torch", "triton"), 2: ("flashinfer",), 3: ("sglang", "flashinfer", "sgl_kernel")}
"""Packages that a tier needs, beside those of tier 1."""


def graphs(run: Run) -> None:
    """Replay against eager, and launches per layer."""
    for unit in UNITS[-1:] if run.rehearse else UNITS:
        bucket = Bucket(2, 160, unit, 2, 2) if run.rehearse else Bucket(8, 16_384, unit)
        case = run.log.attempt(f"graph tensors, {unit}", lambda b=bucket: made(run, b))
        if case is not None:
            name = f"CUDA graph, units of {unit}"
            run.log.attempt(name, lambda c=case: replay_equals_eager(c))
            run.log.attempt(f"launches, units of {unit}", lambda c=case: launches_per_layer(c))


def made(run: Run, bucket: Bucket) -> Case:
    """Tensors of a bucket."""
    return Case(run.extents, bucket, run.device)


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: for `--only`.
        tier: what must be installed.
        seconds: it is ended after so many.
        run: does it.
        answers: what it tells, for `docs/gpu.md`.
    """

    name: str
    tier: int
    seconds: int
    run: Callable[[Run], None]
    answers: str

    def missing(self) -> str | None:
        """None, or which package is not installed."""
        lacking = [name for name in (*TIERS[1], *TIERS[self.tier]) if find_spec(name) is None]
        return f"{' and '.join(lacking)} not installed" if lacking else None

    def skipped(self, reason: str) -> Check:
        """The entry of a part that does not run."""
        return Check(self.name, "skipped", reason)


PARTS = {
    part.name: part
    for part in (
        Part("bandwidth", 1, 60, bandwidth, "what memory gives: the floors' denominator"),
        Part("gate", 1, 240, gates, "each launch against the reference at the measured shapes"),
        Part("graphs", 1, 180, graphs, "replay equals eager to the bit; launches per layer"),
        Part("kernels", 1, 420, kernels, "selection, attend and attention, beside dense decode"),
        Part("shared_prefix", 1, 180, shared_prefix, "32 requests on 128k tokens, and a cascade"),
        Part("parity", 1, 420, parity, "the tests of the Triton kernels"),
        Part("routes", 2, 420, routes, "stock kernels over the overlapping view, in a graph"),
        Part("kit", 3, 300, kit, "SGLang's attention kit, eager and with its graph runner"),
        Part("answers", 3, 600, answers, "a server's tokens equal those of SGLang's dense one"),
        Part("steps", 3, 1200, steps, "whole steps of a random-weight Llama-3.1-8B"),
    )
}
"""Name -> part."""
