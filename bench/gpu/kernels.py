"""Times of our launches beside dense decode, all of a shape in one run."""

from dataclasses import dataclass, field, replace

import torch
from sgl_sparsekv.kernels.triton import load
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.gate import gate
from bench.gpu.log import OK, Fact, Log, Measured, Skip, last_line
from bench.gpu.peers import Peer, usable
from bench.gpu.shapes import (
    FULL,
    LLAMA,
    QUICK,
    REHEARSED,
    TOY,
    UNITS,
    Extents,
    Shape,
    fits,
    layers_of,
    make_scene,
)  # fmt: skip
from bench.gpu.step import Step, make_step
from bench.gpu.timing import Call, Recording, Times, interleave, layers_beyond_cache, record

CREDIBLE = 1.25
"""Times what reading the same bytes takes at the copy bandwidth: a stand-in so fast judges."""
OURS = ("selection", "attend", "attention", "score", "select")


@dataclass
class Run:
    """What every part is given.

    Attributes:
        log: where entries go.
        device: where tensors lie.
        quick: fewer shapes and repeats.
        rehearse: toy shapes on a CPU.
        ungated: times are taken without a green gate too, and not judged.
        kernels: what is checked and timed; None: the package's own.
        green: shapes and units, and whether their gate was passed in this run.
    """

    log: Log
    device: torch.device
    quick: bool = False
    rehearse: bool = False
    ungated: bool = False
    kernels: TritonOps | None = None
    green: dict[tuple[Shape, int], bool] = field(default_factory=dict)

    @property
    def ops(self) -> TritonOps:
        """The kernels, op by op."""
        return self.kernels or load()

    @property
    def extents(self) -> Extents:
        """The measured model's, or a toy's."""
        return TOY if self.rehearse else LLAMA

    @property
    def shapes(self) -> list[Shape]:
        """Shapes to measure, the most telling first."""
        return REHEARSED if self.rehearse else QUICK if self.quick else FULL

    @property
    def repeats(self) -> int:
        """Timed replays."""
        return 10 if self.quick else 30

    def is_green(self, shape: Shape, unit: int) -> bool:
        """Pass the gate of a shape, once in a run."""
        key, name = (shape, unit), f"gate {shape}, units of {unit}"
        if key not in self.green and (name in self.log.known or self.ungated):
            self.green[key] = self.log.known.get(name) == OK
        if key not in self.green:

            def judge() -> str:
                reason = fits(self.extents, shape, 1, self.device)
                if reason:
                    raise Skip(reason)
                return gate(self.extents, shape, unit, self.device, self.kernels)

            self.green[key] = self.log.attempt(name, judge) is not None
        return self.green[key]

    def marked(self, one: Measured, shape: Shape) -> Measured:
        """The same; not judged where its gate was not passed."""
        if self.is_green(shape, one.unit):
            return one
        status = self.log.known.get(f"gate {shape}, units of {one.unit}", "not run")
        note = "; ".join(filter(None, [one.note, f"gate {status}: not judged"]))
        return replace(one, judged=False, note=note)


def bandwidth(run: Run) -> None:
    """Copy and read bandwidth: what floors are counted with."""
    size = 1 << 20 if run.rehearse else 4 << 30

    def measure() -> str:
        source = torch.empty(size // 4, device=run.device).normal_()
        target = torch.empty_like(source)
        calls = {"copy": lambda _: target.copy_(source), "read": lambda _: source.sum()}
        recorded = {name: record(call, 2, run.device) for name, call in calls.items()}
        times = interleave(recorded, run.repeats, run.device)
        for name, factor in (("copy", 2), ("read", 1)):
            run.log.add(Fact(f"{name} bandwidth", factor * size / times[name].least / 1e6, "TB/s"))
        return "bytes read and written over the least time"

    run.log.attempt("bandwidth", measure)


def gates(run: Run) -> None:
    """Every measured shape against the reference, and nothing else."""
    for shape in run.shapes:
        for unit in UNITS:
            run.is_green(shape, unit)


def kernels(run: Run) -> None:
    """Selection, attend and attention at every shape whose gate is green."""
    for shape in run.shapes:
        units = [unit for unit in UNITS if run.is_green(shape, unit) or run.ungated]
        if units:
            run.log.attempt(f"times {shape}", lambda s=shape, u=units: time_shape(run, s, u))


def time_shape(run: Run, shape: Shape, units: list[int]) -> str:
    """Time one shape with all its units and peers taking turns.

    Raises:
        Skip: the pools do not fit the memory.
    """
    extents, layers = run.extents, layers_of(run.extents, shape, run.device)
    reason = fits(extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    scene = make_scene(extents, shape, run.device, layers)
    steps = {unit: make_step(scene, unit, kernels=run.kernels) for unit in units}
    recorded: dict[str, Recording] = {}
    for unit, step in steps.items():
        recorded |= {f"{name} {unit}": one for name, one in ours(step).items()}
    dense, budget = [], []
    short = scene.contiguous(extents.budget)
    whole = shape.context * shape.batch * extents.kv_bytes
    for peers, table, count in (
        (dense, scene.pages, layers_beyond_cache(whole, run.device, layers)),
        (budget, short, layers),
    ):
        if table is short and shape.context <= extents.budget:
            continue
        for peer, call in usable(run.log, scene, table):
            name = f"{peer.name}, {table.shape[1]}"
            if add_peer(run, recorded, name, call, count):
                peers.append(peer)
    times = interleave(recorded, run.repeats, run.device)
    for unit, step in steps.items():
        report(run, shape, unit, times, dense, budget)
        time_once(run, step)
    return f"{layers} layers take turns, {run.repeats} repeats"


def add_peer(run: Run, recorded: dict[str, Recording], name: str, call: Call, count: int) -> bool:
    """Record a peer; one that cannot be captured is left out, with its reason."""

    def capture() -> str:
        try:
            recorded[name] = record(call, count, run.device)
        except Exception as error:
            raise Skip(f"cannot be captured: {last_line(error)}") from error
        return f"{count} layers"

    return run.log.attempt(f"graph of {name}", capture) is not None


def ours(step: Step) -> dict[str, Recording]:
    """Our calls of one unit size, recorded; `begin` has planned, each row's newest unit pending."""
    step.begin()
    step.selection(0)
    wide = max(len(step.fields), step.chosen)
    calls = {
        "selection": (step.selection, wide), "score": (step.score, wide),
        "select": (step.select, wide), "attend": (step.attend, step.chosen),
        "attention": (step.decode, step.chosen),
    }  # fmt: skip
    device = step.scene.device
    return {name: record(call, count, device) for name, (call, count) in calls.items()}


def time_once(run: Run, step: Step) -> None:
    """What a step does beside its layers; stamps the newest units, so it comes last."""
    times = interleave({"once": record(step.once, 4, run.device)}, run.repeats, run.device)
    name = f"once per step {step.scene.shape}, units of {step.unit}: forget, begin, end"
    run.log.add(Fact(name, times["once"].least, "us"))


def report(
    run: Run, shape: Shape, unit: int, times: dict[str, Times], dense: list[Peer],
    budget: list[Peer],
) -> None:  # fmt: skip
    """Entries of one unit size."""
    at = (shape.context, shape.batch, unit)
    mine = {name: times[f"{name} {unit}"] for name in OURS}
    parts = f"score {mine['score'].least:.2f}, select {mine['select'].least:.2f}"
    selection = mine["selection"]
    row = Measured("selection", *at, selection.least, selection.median, note=parts)
    run.log.add(run.marked(row, shape))
    page = run.extents.page
    for name, peers, tokens in (
        ("attend", budget, run.extents.budget),
        ("attention", dense, shape.context),
    ):
        found = {peer.name: times[f"{peer.name}, {tokens // page}"] for peer in peers}
        judged = any(peer.judges for peer in peers) or credible(run, shape, tokens, found)
        run.log.add(run.marked(versus(name, at, mine[name], found, judged), shape))


def credible(run: Run, shape: Shape, tokens: int, found: dict[str, Times]) -> bool:
    """Whether a stand-in reads so fast that no other peer could be much faster."""
    copied = run.log.bandwidth
    if copied is None or not found or run.device.type != "cuda":
        return False
    floor = shape.batch * tokens * run.extents.kv_bytes / copied / 1e6
    return min(times.least for times in found.values()) <= CREDIBLE * floor


def versus(
    name: str, at: tuple[int, int, int], mine: Times, peers: dict[str, Times], judged: bool
) -> Measured:
    """A row against the fastest peer; all of them are in the note."""
    if not peers:
        note = "no peer ran: not judged"
        return Measured(name, *at, mine.least, mine.median, judged=False, note=note)
    best = min(peers, key=lambda peer: peers[peer].least)
    note = ", ".join(f"{peer} {times.least:.2f}" for peer, times in peers.items())
    if not judged:
        note += "; the target's peer did not run: not judged"
    least = peers[best].least
    return Measured(name, *at, mine.least, mine.median, best, least, judged, note)
