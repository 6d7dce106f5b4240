"""What a GPU run must reach: Llama-3.1-8B's shapes, page 64, budget 2048.

Bounds in microseconds are an H200's; another card's are as much longer as its memory is slower.
Gains are the same on both: what is compared reads from the same memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.model import GPUS, LLAMA_3_1_8B, Gpu, Model, Workload, floors, shared_floors

PAGE, BUDGET = 64, 2048
JUDGED = ("h200", "h100")
"""GPUs whose rows targets judge; bounds are put for the first."""
TIMES_THE_FLOOR = 1.5
"""A target that bytes forbid is put in bytes: two thirds of what reading them takes at best."""
K = 1024


Floor = Callable[[Gpu, Model, Workload], float]


@dataclass(frozen=True)
class Name:
    """What one kind of row times.

    Attributes:
        what: in words.
        floor: its floor in microseconds.
        peer: the floor of what it is compared with; None: nothing.
    """

    what: str
    floor: Floor
    peer: Floor | None = None


NAMES = {
    "selection": Name("score and select, a layer", lambda *at: floors(*at).selection_us),
    "attend": Name(
        "attention over the selected tokens, a layer; peer: dense, on a request of that length",
        lambda *at: floors(*at).attend_us,
        lambda *at: floors(*at).attend_us,
    ),
    "attention": Name(
        "score, select and attend, a layer; peer: dense attention",
        lambda *at: floors(*at).sparse_us,
        lambda *at: floors(*at).dense_us,
    ),
    "step": Name(
        "a whole decode step; peer: the same server, dense",
        lambda *at: floors(*at).sparse_step_us,
        lambda *at: floors(*at).dense_step_us,
    ),
    "shared_prefix": Name(
        "as attention, all of the context shared by the batch; peer: cascade attention",
        lambda *at: shared_floors(*at).shared_us / at[1].layers,
        lambda *at: shared_floors(*at).cascade_us / at[1].layers,
    ),
}


@dataclass(frozen=True)
class Bound:
    """What one shape must reach on one GPU.

    Attributes:
        max_us: measured time at most.
        min_gain: peer's time over ours at least.
        beats: the gain must be above `min_gain`.
        forbidden: bytes forbid the target's own bound; this one is `TIMES_THE_FLOOR`.
    """

    max_us: float | None = None
    min_gain: float | None = None
    beats: bool = False
    forbidden: bool = False

    def __str__(self) -> str:
        if self.max_us is not None:
            return f"<= {self.max_us:.3g} us"
        return f"{'>' if self.beats else '>='} {self.min_gain:.3g}x"

    def met(self, measured_us: float, gain: float | None) -> bool:
        """Whether a row reaches it; without a peer it reaches no gain."""
        if self.max_us is not None:
            return measured_us <= self.max_us
        assert self.min_gain is not None
        if gain is None or (self.beats and gain == self.min_gain):
            return False
        return gain >= self.min_gain


@dataclass(frozen=True)
class Target:
    """One bound.

    Attributes:
        name: rows that it judges.
        shapes: (context, batch) that are listed, and judged.
        max_us: measured time at most.
        min_gain: peer's time over ours at least.
        beats: the gain must be above `min_gain`.
        everywhere: judges every shape.
        max_units: judges shapes of so many units per request and `max_batch` requests at most.
        max_batch: see `max_units`.
    """

    name: str
    shapes: tuple[tuple[int, int], ...] = ()
    max_us: float | None = None
    min_gain: float | None = None
    beats: bool = False
    everywhere: bool = False
    max_units: int | None = None
    max_batch: int | None = None

    def put(self, gpu: str) -> Bound:
        """As it is put, on a GPU, by the bandwidth of `bench.model`."""
        slower = GPUS[JUDGED[0]].tb_per_s / GPUS[gpu].tb_per_s
        most = None if self.max_us is None else self.max_us * slower
        return Bound(most, self.min_gain, self.beats)

    def floor(self, gpu: str, work: Workload) -> tuple[float, float | None]:
        """Microseconds of the row at best, and its gain then."""
        name, at = NAMES[self.name], (GPUS[gpu], LLAMA_3_1_8B, work)
        us = name.floor(*at)
        return us, None if name.peer is None else name.peer(*at) / us

    def bound(self, gpu: str, work: Workload) -> Bound:
        """What a shape must reach; in bytes where these forbid what is put."""
        put, (us, gain) = self.put(gpu), self.floor(gpu, work)
        if put.met(us, gain):
            return put
        if put.max_us is not None:
            return Bound(max_us=us * TIMES_THE_FLOOR, forbidden=True)
        assert gain is not None
        return Bound(min_gain=gain / TIMES_THE_FLOOR, forbidden=True)

    def applies(self, name: str, work: Workload, page: int) -> bool:
        """Whether a row is judged."""
        if (name, page, work.budget) != (self.name, PAGE, BUDGET):
            return False
        if self.max_units is not None and self.max_batch is not None:
            return work.context <= self.max_units * work.page and work.batch <= self.max_batch
        return self.everywhere or (work.context, work.batch) in self.shapes


TARGETS = {
    "selection": Target(
        "selection",
        ((32 * K, 1), (32 * K, 8), (64 * K, 8), (128 * K, 1), (128 * K, 8)),
        max_us=10,
        max_units=2048,
        max_batch=8,
    ),
    "attend": Target("attend", ((32 * K, 1), (32 * K, 8)), min_gain=0.9, everywhere=True),
    "attention 32k x 8": Target("attention", ((32 * K, 8),), min_gain=6),
    "attention 128k x 8": Target("attention", ((128 * K, 8),), min_gain=20),
    "step 32k x 1": Target("step", ((32 * K, 1),), min_gain=1.12),
    "step 32k x 8": Target("step", ((32 * K, 8),), min_gain=1.9),
    "step anywhere": Target("step", min_gain=0.99, everywhere=True),
    "shared prefix 128k x 32": Target("shared_prefix", ((128 * K, 32),), min_gain=1, beats=True),
}
