"""One layer of a model on the GPU: compiled, compared with the reference, timed.

`python -m sgl_sparsekv.serving.gpu_check` prints the result as one line of JSON; `sparsekv doctor
--gpu` runs it in a process of its own. Requests are random and of three lengths; what was selected
is judged by the reference's scores, the result against float64 attention over it, and all that must
not be read is NaN.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch

from ..config import RequestOptions, ServerOptions
from ..errors import UnsupportedSetup
from ..fused_ops import FusedDecode, FusedOps
from ..geometry import UNIT_SIZE, Geometry
from ..ops import load_ops
from ..selection import load_method
from ..selection.policy import RowOptions, RowPlan, plan_rows
from ..selection.quest import Quest
from ..types import Candidates, Reduction, StepShape

LENGTHS, BUDGET, PAGE = (4011, 2048, 700), 512, 64
SPARE_PAGES = 3
SHARPNESS = 4.0
"""Spread of queries: a few keys weigh most, so that a key left out shows in the result."""
SLACK = 2.0**-9
"""Scores are float32 sums of exact products near 100; they may differ in their order."""
EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
REPLAYS, CALLS = 20, 32


@dataclass(frozen=True)
class Layer:
    """What is checked.

    Attributes:
        heads: KV heads.
        group: query heads per KV head.
        head_dim: channels.
        dtype: name of the cache's element type.
    """

    heads: int = 8
    group: int = 4
    head_dim: int = 128
    dtype: str = "bfloat16"

    @property
    def type(self) -> torch.dtype:
        """The element type."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        gpu: its name; "" where there is none.
        problem: what is wrong; "" when all is well.
        compile_seconds: until the first step was done.
        layer_us: score, select and attend, least of the replays; None where nothing was timed.
    """

    gpu: str
    problem: str = ""
    compile_seconds: float = 0.0
    layer_us: float | None = None


class Scene:
    """Requests over a pool of one layer."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        rng = torch.Generator().manual_seed(0)
        self.layer, self.device = layer, device
        counts = [-(-length // PAGE) for length in LENGTHS]
        pages = torch.randperm(sum(counts), generator=rng) + 1
        slots = (sum(counts) + 1 + SPARE_PAGES) * PAGE
        self.req_to_token = torch.zeros(len(LENGTHS) + 1, max(counts) * PAGE, dtype=torch.int32)
        for row, mine in enumerate(pages.split(counts)):
            run = (mine[:, None] * PAGE + torch.arange(PAGE)).flatten()
            self.req_to_token[row + 1, : len(run)] = run.int()
        self.req_to_token = self.req_to_token.to(device)
        shape = (slots, layer.heads, layer.head_dim)
        self.keys, self.values = (
            torch.randn(shape, generator=rng).to(layer.type).to(device) for _ in range(2)
        )
        q = torch.randn(
            len(LENGTHS), layer.heads, layer.group, layer.head_dim, generator=rng
        )  # fmt: skip
        self.q = (SHARPNESS * q).to(layer.type).to(device)
        for pool in (self.keys, self.values):
            pool[:PAGE] = pool[-SPARE_PAGES * PAGE :] = torch.nan
        self.units = self.req_to_token[1:, ::UNIT_SIZE].long() // UNIT_SIZE
        self.fields, self.sealed = self._metadata(slots // UNIT_SIZE)

    def _metadata(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Fields and stamps of full units; NaN and none elsewhere."""
        layer = self.layer
        full = torch.cat([self.units[i, : n // UNIT_SIZE] for i, n in enumerate(LENGTHS)])
        fields = torch.full(
            (count, layer.heads, 2, layer.head_dim), torch.nan, dtype=layer.type,
            device=self.device,
        )  # fmt: skip
        load_ops("reference").summarise(Quest.summary, self.keys, fields, full)
        sealed = torch.zeros(count, dtype=torch.bool, device=self.device)
        sealed[full] = True
        return fields, sealed

    @property
    def scale(self) -> float:
        """Softmax scale."""
        return float(self.layer.head_dim**-0.5)

    def plan(self) -> RowPlan:
        """What the host plans."""
        asked = [RequestOptions(budget=BUDGET)] * len(LENGTHS)
        lengths = np.array(LENGTHS, dtype=np.int64)
        return plan_rows(lengths, RowOptions.resolve(asked, lengths), Geometry(PAGE, UNIT_SIZE))


def check(layer: Layer, device: torch.device) -> Report:
    """Run a step and judge it.

    Raises:
        UnsupportedSetup: no kernel serves the layer, or nothing compiles for this machine.
    """
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else ""
    scene, start = Scene(layer, device), time.monotonic()
    step = make_step(scene)
    places = torch.arange(1, len(LENGTHS) + 1, device=device)
    step.begin(scene.sealed, places, torch.tensor(LENGTHS, device=device), scene.req_to_token)
    out = decode(step, scene).clone()
    seconds = time.monotonic() - start
    wrong = [problem for row in range(len(LENGTHS)) if (problem := judge(step, scene, row, out))]
    layer_us = timed(step, scene) if cuda and not wrong else None
    return Report(name, "; ".join(wrong), round(seconds, 1), layer_us)


def make_step(scene: Scene) -> FusedDecode:
    """Buffers and options, for the methods of a server's default flags."""
    layer, rows, units = scene.layer, len(LENGTHS), scene.units.shape[1]
    formulas = frozenset(load_method(name).formula for name in ServerOptions().methods)
    shape = StepShape(
        rows, rows + 1, units, units, len(scene.sealed), layer.heads, layer.group, layer.head_dim,
        layer.head_dim, UNIT_SIZE, PAGE, layer.type, scene.device, formulas,
        Reduction.MAX_SOFTMAX,
    )  # fmt: skip
    step = cast(FusedOps, load_ops("triton")).fused(shape, watched=True)
    one = RequestOptions()
    row = [step.formula("min_max"), BUDGET, 0, one.sink, one.window]
    step.buffers.options.zero_()
    step.buffers.options[:, : len(row)] = torch.tensor(row, dtype=torch.int32, device=scene.device)
    return step


def decode(step: FusedDecode, scene: Scene) -> torch.Tensor:
    """The layer, `[rows, H, G, D]`."""
    fields = {"min_max": scene.fields}
    return step.decode(
        scene.sealed, 0, scene.q, scene.keys, scene.values, fields, scene.scale
    )  # fmt: skip


def judge(step: FusedDecode, scene: Scene, row: int, out: torch.Tensor) -> str:
    """What is wrong with a row, its first wrong head named; "" when nothing is."""
    plan = scene.plan()
    count, begin, end = (int(x[row]) for x in (plan.counts, plan.begin, plan.end))
    total, units = int(plan.num_units[row]), scene.units[row]
    at = Candidates(units[None].int(), *(step.buffers.plan[k, row : row + 1] for k in (1, 2)))
    planned = [int(step.buffers.plan[k, row]) for k in (1, 2, 4)]
    if planned != [begin, end, count]:
        return f"request {row}: planned as {planned}, not as {[begin, end, count]}"
    rank = load_ops("reference").score(
        Quest.summary, scene.q[row : row + 1], scene.fields, at, scene.scale, Reduction.MAX_SOFTMAX
    )[0, :, :total]
    rank[:, :begin] = rank[:, end:] = torch.inf
    for head in range(scene.layer.heads):
        chosen = step.buffers.logical[row, head, :count].long()
        kept = torch.zeros(total, dtype=torch.bool, device=scene.device)
        if bool((chosen < 0).any()) or bool((chosen.diff() <= 0).any()):
            return f"request {row}, head {head}: units do not ascend"
        kept[chosen] = True
        if bool(rank[head][kept].min() < rank[head][~kept].max() - SLACK):
            return f"request {row}, head {head}: a better unit was left out"
        slots = units[chosen][:, None] * UNIT_SIZE + torch.arange(UNIT_SIZE, device=scene.device)
        read = slots.flatten()[: (count - 1) * UNIT_SIZE + int(plan.tail[row])]
        error = attention_error(scene, row, head, read, out[row, head])
        if not error <= 0:
            return f"request {row}, head {head}: attention errs by {error:.3g} too much"
    return ""


def attention_error(
    scene: Scene, row: int, head: int, slots: torch.Tensor, out: torch.Tensor
) -> float:
    """How far a result is beyond what its roundings allow; below 0 when it is not."""
    keys, values = (pool[slots, head].double() for pool in (scene.keys, scene.values))
    weights = (scene.q[row, head].double() @ keys.T * scene.scale).softmax(-1)
    exact, eps = weights @ values, EPS[scene.layer.type]
    band = 2 * eps * (weights @ values.abs()) + 2.02 * eps * exact.abs() + 1e-5
    return float(((out.double() - exact).abs() - band).max())


def timed(step: FusedDecode, scene: Scene) -> float:
    """Microseconds of a layer, least of the replays of a graph of many."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            decode(step, scene)
    found = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(1e3 * start.elapsed_time(end) / CALLS)
    return float(round(min(found), 2))


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="sgl_sparsekv.serving.gpu_check", description=__doc__)
    parser.add_argument("--heads", type=int, default=Layer.heads, help="KV heads")
    parser.add_argument("--group", type=int, default=Layer.group, help="query heads per KV head")
    parser.add_argument("--head-dim", type=int, default=Layer.head_dim)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default=Layer.dtype)
    layer = Layer(**vars(parser.parse_args()))
    report = Report("")
    if torch.cuda.is_available():
        try:
            report = check(layer, torch.device("cuda", 0))
        except UnsupportedSetup as error:
            report = Report(torch.cuda.get_device_name(0), str(error))
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
