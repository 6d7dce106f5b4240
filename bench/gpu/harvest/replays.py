"""One captured graph, replayed many times: races need numbers.

Each replay begins from the same stamps and fields, so that units are summarised and scored from
their keys every time. A checksum of all that it leaves is compared on the device.
"""

from dataclasses import dataclass

import torch

from bench.gpu.gate import check
from bench.gpu.graphs import Bucket, Case, replay_equals_eager
from bench.gpu.kernels import Run
from bench.gpu.shapes import UNITS
from bench.gpu.timing import record

ROWS = (1, 3, 8, 17)
CONTEXT = 16_384
REPLAYS = 2000
NEVER = 1 << 30


def replays(run: Run) -> None:
    """Replays of one content, then other contents against the same calls run eagerly."""
    cases = []
    for rows in ROWS[:1] if run.rehearse else ROWS:
        for unit in UNITS[-1:] if run.rehearse or rows != ROWS[2] else UNITS:
            bucket = Bucket(rows, 160, unit, 2, 1) if run.rehearse else Bucket(rows, CONTEXT, unit)
            name = f"{rows} rows, units of {unit}"
            case = run.log.attempt(f"tensors of {name}", lambda b=bucket: made(run, b))
            if case is not None:
                cases.append((name, case))
                count = 3 if run.rehearse else REPLAYS
                run.log.attempt(f"{count} replays, {name}", lambda c=case, n=count: equal(c, n))
    for name, case in cases:
        run.log.attempt(f"other contents, {name}", lambda c=case: replay_equals_eager(c))


def made(run: Run, bucket: Bucket) -> Case:
    """Tensors of a bucket."""
    return Case(run.extents, bucket, run.device, run.kernels)


@dataclass
class Counter:
    """Replays that differed, counted on the device.

    Attributes:
        wanted: checksum of the first step, int64 `[]`.
        number: of the replay.
        differ: replays whose checksum was another.
        first: number of the first of them.
    """

    wanted: torch.Tensor
    number: torch.Tensor
    differ: torch.Tensor
    first: torch.Tensor

    def note(self, found: torch.Tensor) -> None:
        """Compare one more checksum."""
        wrong = found != self.wanted
        self.differ += wrong
        self.first.copy_(self.first.minimum(torch.where(wrong, self.number, NEVER)))
        self.number += 1


def equal(case: Case, count: int) -> str:
    """Replay one content.

    Raises:
        AssertionError: a checksum differs; names the first replay and how many there are.
    """
    case.load(1)
    before = [case.sealed.clone(), *(t.clone() for one in case.fields for t in one.values())]
    kept = [case.sealed, *(tensor for one in case.fields for tensor in one.values())]
    weights = weights_of(case)
    case.body()
    zero, like = torch.zeros((), dtype=torch.int64, device=case.device), torch.int64
    never = torch.full((), NEVER, dtype=like, device=case.device)
    counter = Counter(checksum(case, weights), zero.clone(), zero.clone(), never)

    def body(_: int) -> None:
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(old)
        case.body()
        counter.note(checksum(case, weights))

    recording = record(body, 1, case.device)
    counter.number.zero_()
    for _ in range(count):
        recording.replay()
    wrong, first = int(counter.differ), int(counter.first)
    check(not wrong, f"{wrong} of {int(counter.number)} replays differ, the first is {first}")
    return f"{int(counter.number)} equal"


def weights_of(case: Case) -> list[torch.Tensor]:
    """Odd numbers, so that values that change places are seen."""
    return [
        2 * torch.arange(words(tensor).numel(), device=case.device) + 1
        for tensor in left_behind(case)
    ]


def checksum(case: Case, weights: list[torch.Tensor]) -> torch.Tensor:
    """Of everything that the step left behind, int64 `[]`."""
    sums = [
        (words(tensor).long() * weight).sum()
        for tensor, weight in zip(left_behind(case), weights, strict=True)
    ]
    return torch.stack(sums).sum()


def left_behind(case: Case) -> list[torch.Tensor]:
    """Results, choices, tickets, plan, stamps and fields."""
    held = case.fused.buffers
    fields = [tensor for one in case.fields for tensor in one.values()]
    return [case.outs, held.selected, held.tickets, held.plan, case.sealed, *fields]


def words(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits as numbers."""
    flat = tensor.reshape(-1)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[flat.element_size()]
    return flat.view(kind)
