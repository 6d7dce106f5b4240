"""One captured graph, replayed with other contents, against the same calls run eagerly: bit by bit.

Recorded are `forget`, `begin`, the layers and `end`. Between replays everything that may change
does: lengths, options of every formula, which requests, their pages, stamps and metadata.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sgl_sparsekv.kernels.triton import load
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.gate import check
from bench.gpu.log import Skip
from bench.gpu.shapes import SHARPNESS, Extents, pool
from bench.gpu.step import SUMMARIES
from bench.gpu.timing import record
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.types import Reduction, StepShape

FORMULAS = ("min_max", "mean_std", "exact", "position", "nothing")
MOST_LAUNCHES = 3
"""Per layer, beside writing K and V."""


@dataclass(frozen=True)
class Bucket:
    """One captured batch size.

    Attributes:
        rows: of the batch.
        context: longest request.
        unit: tokens per unit.
        contents: to replay.
        layers: in the graph.
    """

    rows: int
    context: int
    unit: int
    contents: int = 5
    layers: int = 3


class Case:
    """Static tensors of a bucket, what fills them, and what is recorded."""

    def __init__(
        self, extents: Extents, bucket: Bucket, device: torch.device,
        kernels: TritonOps | None = None,
    ) -> None:  # fmt: skip
        self.extents, self.bucket, self.device = extents, bucket, device
        self.page_count = -(-bucket.context // extents.page)
        slots = (bucket.rows * self.page_count + 4) * extents.page
        units, rows = bucket.context // bucket.unit, bucket.rows
        self.kv = [
            tuple(pool(slots, extents, device) for _ in range(2)) for _ in range(bucket.layers)
        ]
        self.fused = (kernels or load()).fused(StepShape(
            rows, rows + 2, units, units, slots // bucket.unit, extents.heads, extents.group,
            extents.dim, extents.dim, bucket.unit, extents.page, extents.dtype, device,
            frozenset(FORMULAS), Reduction.MAX_SOFTMAX,
        ))  # fmt: skip
        self.q = torch.zeros(
            bucket.layers, rows, extents.heads, extents.group, extents.dim, dtype=extents.dtype,
            device=device,
        )  # fmt: skip
        self.outs = torch.zeros_like(self.q)
        self.places = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lengths = torch.ones(rows, dtype=torch.int64, device=device)
        self.newest = torch.zeros(rows, dtype=torch.int64, device=device)
        self.req_to_token = torch.zeros(rows + 2, bucket.context, dtype=torch.int32, device=device)
        self.sealed = torch.zeros(slots // bucket.unit, dtype=torch.bool, device=device)
        self.known = [self._summaries(keys) for keys, _ in self.kv]
        self.fields = [{n: torch.zeros_like(t) for n, t in one.items()} for one in self.known]

    def _summaries(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        """Fields of every unit of a pool."""
        units = torch.arange(self.sealed.numel(), device=self.device)
        shape = (len(units), keys.shape[1], 2, keys.shape[2])
        made = {name: keys.new_empty(shape) for name in SUMMARIES}
        for name, fields in made.items():
            load_ops("reference").summarise(SUMMARIES[name], keys, fields, units)
        return made

    def load(self, number: int) -> None:
        """Fill the static tensors with one of the contents."""
        rng, bucket, page = torch.Generator().manual_seed(number), self.bucket, self.extents.page
        rows, places = bucket.rows, torch.randperm(bucket.rows + 2, generator=rng)[: bucket.rows]
        lengths = torch.randint(1, bucket.context + 1, (rows,), generator=rng)
        lengths[0] = (1, bucket.context, page, page + 1, bucket.context - 1)[number % 5]
        pages = torch.randperm(rows * self.page_count, generator=rng).view(rows, -1) + 1
        slots = (pages[:, :, None] * page + torch.arange(page)).view(rows, -1)
        table = torch.zeros(rows + 2, bucket.context, dtype=torch.int32)
        table[places] = slots[:, : bucket.context].int()
        self.req_to_token.copy_(table)
        self.places.copy_(places)
        self.lengths.copy_(lengths)
        self.newest.copy_(slots[torch.arange(rows), lengths - 1])
        self.q.copy_((SHARPNESS * torch.randn(self.q.shape, generator=rng)).to(self.q.dtype))
        options = torch.full_like(self.fused.buffers.options, -1, device="cpu")
        for i, place in enumerate(places.tolist()):
            least = self.extents.sink + self.extents.window + 2 * bucket.unit
            budget = least + int(torch.randint(0, self.extents.budget, (), generator=rng))
            formula = self.fused.formula(FORMULAS[(i + number) % len(FORMULAS)])
            row = [formula, budget, 0, self.extents.sink, self.extents.window, (i + number) % 2]
            options[place] = 0
            options[place, : len(row)] = torch.tensor(row, dtype=torch.int32)
        self.fused.buffers.options.copy_(options)
        stamped = torch.rand(self.sealed.numel(), generator=rng) < 0.5
        self._stamp(stamped.to(self.device))

    def _stamp(self, stamped: torch.Tensor) -> None:
        """Stamps and fields as earlier steps left them: NaN without a stamp."""
        self.sealed.copy_(stamped)
        for fields, known in zip(self.fields, self.known, strict=True):
            for name, tensor in fields.items():
                tensor.copy_(known[name])
                tensor[~stamped] = torch.nan

    def body(self, _: int = 0) -> None:
        """What is recorded."""
        self.fused.forget(self.sealed, self.newest)
        self.fused.begin(self.sealed, self.places, self.lengths, self.req_to_token)
        for layer in range(self.bucket.layers):
            self.outs[layer].copy_(self.layer(layer))
        self.fused.end(self.sealed)

    def layer(self, layer: int) -> torch.Tensor:
        """One layer's decode."""
        keys, values = self.kv[layer]
        fields, scale = self.fields[layer], self.extents.scale
        return self.fused.decode(self.sealed, layer, self.q[layer], keys, values, fields, scale)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a step leaves behind."""
        held = self.fused.buffers
        found = {"out": self.outs, "stamps": self.sealed, "plan": held.plan}
        found |= {"tickets": held.tickets, "pending": held.pending_count}
        for layer, fields in enumerate(self.fields):
            found |= {f"{name} of layer {layer}": tensor for name, tensor in fields.items()}
        return {name: tensor.clone() for name, tensor in found.items()}


def replay_equals_eager(case: Case) -> str:
    """Capture once, then replay every content and compare all that is left behind.

    Raises:
        AssertionError: a bit differs; names the content and the tensor.
    """
    bucket = case.bucket
    case.load(0)
    recording = record(case.body, 1, case.device)
    for number in [*range(1, bucket.contents), 0]:
        found = []
        for run in (recording.replay, case.body):
            case.load(number)
            run()
            found.append(case.state())
        for name, replayed in found[0].items():
            same = torch.equal(bits(replayed), bits(found[1][name]))
            check(same, f"content {number}: {name} differs between replay and eager")
        check(not found[0]["out"].isnan().any(), f"content {number}: something NaN was read")
        check(not found[0]["tickets"].any(), f"content {number}: tickets are not back at 0")
        check(not found[0]["pending"].any(), f"content {number}: pending units are left")
    return (
        f"{bucket.contents} contents, {bucket.layers} layers, {bucket.rows} rows: equal to the bit"
    )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes: a NaN is equal to itself."""
    return tensor.contiguous().view(torch.uint8)


def launches_per_layer(case: Case) -> str:
    """Count what `decode` puts on the device.

    Raises:
        AssertionError: more than `MOST_LAUNCHES`.
        Skip: they cannot be counted here.
    """
    case.load(1)
    case.body()
    count = counted(lambda: case.layer(1), case.device)
    if not count:
        raise Skip("the profiler saw no kernel")
    check(count <= MOST_LAUNCHES, f"{count:g} launches per layer, wanted {MOST_LAUNCHES}")
    return f"{count:g} launches per layer"


def counted(call: Callable[[], None], device: torch.device) -> int:
    """Kernels that a call launches: by the profiler, on a CPU by counting interpreted ones."""
    if device.type != "cuda":
        return _interpreted(call)
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    kernels = [e.name for e in found.events() or [] if e.device_type == DeviceType.CUDA]
    return len([name for name in kernels if not name.startswith(("Memcpy", "Memset"))])


def _interpreted(call: Callable[[], None]) -> int:
    from triton.runtime.interpreter import InterpretedFunction

    count, original = 0, InterpretedFunction.run

    def run(self: object, *args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        return original(self, *args, **kwargs)

    InterpretedFunction.run = run
    try:
        call()
    finally:
        InterpretedFunction.run = original
    return count
