"""Methods that read segment records, choose finer units, or not in every step: a layer of each.

Records are built by the device and judged by how well they stand for their keys; what is chosen and
what comes of it are judged by the reference, by the records as they lie there. It computes on the
host, from a copy of what one row can see.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.gpu.gate import EPS
from bench.gpu.harvest.checks.inputs import LESS, server_units
from bench.gpu.harvest.checks.seen import Row, records_of, seen
from bench.gpu.harvest.checks.select import kept_best
from bench.gpu.harvest.differ import near, same
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from bench.gpu.methods import (
    DEFAULT,
    FEWER,
    READERS,
    MethodStep,
    Reader,
    make_method_step,
    seal,
)
from bench.gpu.methods import SMALL as SMALL_INDEX
from bench.gpu.shapes import K, Shape, fits, make_scene
from sgl_sparsekv.backend.gpu_defaults import UNIT_SIZE as UNIT
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata.records import write_records
from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.selection.sampling import covering_selection
from sgl_sparsekv.summaries import BoundSummary, CodeSummary, ResidualSummary, SegmentSummary
from sgl_sparsekv.types import (
    Candidates,
    Goal,
    KeptUnits,
    Reduction,
    ScoreInputs,
    Selection,
)

LARGE, SMALL, REHEARSED = Shape(32 * K, 3), Shape(1088, 3), Shape(960, 1)
TIGHT = {"budget": 96, "sink": 0, "window": 8}
"""Of small shapes: so little that clusters and segments stay shut."""
SOFTER = 0.2
"""Times as sharp are queries where clusters answer for what is not read."""
WORSE = 1.02
"""Times the squared error that the reference's records have, at most."""
ALIKE = 0.02
"""Part by which what a coverage takes may differ from the reference's: samples are few."""
AXES = ("head", "query", "channel")


def check(run: Run) -> None:
    """The small shape for every reader first, then a measured one."""
    for shape in (REHEARSED,) if run.rehearse else (SMALL, LARGE):
        for reader in FEWER if run.rehearse else READERS:
            name = f"{reader}, {shape}, units of {UNIT}"
            run.log.attempt(name, partial(layer, run, reader, shape))


def layer(run: Run, reader: Reader, shape: Shape) -> str:
    """Records, choice and result of one layer; V of all that was not chosen is NaN then.

    Raises:
        AssertionError: one is not the reference's.
        Skip: the pools do not fit the memory.
    """
    step = prepared(run, reader, shape)
    counted = judge_records(step)
    step.begin()
    step.decode(0)
    chosen = [judge_choice(step, row) for row in rows_of(step)]
    if reader.every > 1:
        step.end()
        step.begin(later=1)
        held = [one.rank for one in chosen]
        step.scene.q.neg_()  # other scores: what is held must not depend on them
        step.decode(0)
        chosen = [judge_choice(step, *one) for one in zip(rows_of(step), held, strict=True)]
    hide_unread(step)
    out = step.decode(0)
    for row, one in zip(rows_of(step), chosen, strict=True):
        judge_result(step, one, out[row])
    tickets = step.fused.buffers.tickets
    same("tickets", tickets, torch.zeros_like(tickets), ("row", "head"))
    return f"{len(chosen)} of {step.scene.shape.batch} rows{counted}"


def prepared(run: Run, reader: Reader, shape: Shape) -> MethodStep:
    """A layer of requests of different lengths, its records built and all but the newest stamped.

    Raises:
        Skip: the pools do not fit the memory.
    """
    small = shape != LARGE
    extents = replace(run.extents, **TIGHT) if small else run.extents
    if small and reader.coverage:  # what decides is not the budget
        extents = replace(extents, budget=shape.context // 2)
    index = SMALL_INDEX if small else DEFAULT
    reason = fits(extents, shape, 1, run.device)
    if reason:
        raise Skip(reason)
    scene = make_scene(extents, shape, run.device, layers=1)
    scene.lengths -= torch.arange(shape.batch, device=run.device) * LESS
    units = server_units(run, shape.context // UNIT, UNIT)
    step = make_method_step(scene, UNIT, reader, run.ops, units, index, watched=True)
    if reader.estimate:  # what is not read weighs something
        scene.q.mul_(SOFTER)
    seal(step)
    step.build(gaps=True)
    return step


def rows_of(step: MethodStep) -> list[int]:
    """Rows that are compared."""
    return sorted({0, step.scene.shape.batch - 1})


@dataclass
class Chosen:
    """What a row read.

    Attributes:
        row: what it saw.
        logical: int64 `[H, n]`, units; counts: int64 `[H]`, how many of them.
        rank: float32 `[H, U]`, by which they were chosen.
    """

    row: Row
    logical: torch.Tensor
    counts: torch.Tensor
    rank: torch.Tensor


def judge_records(step: MethodStep) -> str:
    """Bounds are the reference's; codes stand for their keys as well as the reference's do.

    Raises:
        AssertionError: they do not.
    """
    told, ops = "", load_ops("reference")
    for held in step.metadata.records.values():
        summary, size, row = held.summary, held.summary.segment_size, rows_of(step)[-1]
        slots = step.scene.req_to_token[step.scene.places[row]].long()
        keys, values = (pool[slots[:size]].cpu() for pool in step.scene.kv[0])
        fresh = {
            name: torch.zeros(1, *array.shape[1:], dtype=array.dtype)
            for name, array in held.arrays[0].items()
        }
        at = torch.zeros(1, dtype=torch.int64)
        write_records(ops, summary, (keys, values), torch.arange(size)[None], at, fresh, at)
        record = records_of(step, summary, row)[:1]
        built = {name: array[record].cpu() for name, array in held.arrays[0].items()}
        if isinstance(summary, BoundSummary):
            same("bounds of a segment", built["planes"], fresh["planes"], ("record", "head"))
            continue
        wanted = keys.float().movedim(0, 1)
        errors = [float((decoded(summary, one) - wanted).square().sum()) for one in (built, fresh)]
        told += f"; {summary.name} errs {errors[0] / errors[1]:.4f} of the reference"
        if not errors[0] <= WORSE * errors[1]:
            raise AssertionError(f"records{told}")
    return told


def decoded(summary: SegmentSummary, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
    """Keys that the one record of some arrays stands for: float32 `[H, S, D]`."""
    table = torch.zeros(1, 1, dtype=torch.int32)
    if isinstance(summary, CodeSummary):
        return SegmentIndex(arrays["codes"], arrays["codebooks"], table).decoded(0)
    assert isinstance(summary, ResidualSummary)
    return ResidualIndex(**arrays, table=table).decoded(0)


def judge_choice(step: MethodStep, row: int, held: torch.Tensor | None = None) -> Chosen:
    """Read from the device what a row chose, and hold it against the reference's scores.

    Args:
        held: scores of an earlier step that it is to choose by.

    Raises:
        AssertionError: a better unit was left out, or a coverage took another number of them.
    """
    mine = seen(step, row, later=int(held is not None))
    ops, inputs, buffers = load_ops("reference"), mine.inputs, step.fused.buffers
    total, heads = int(inputs.num_units), step.scene.extents.heads
    counts = inputs.counts.expand(heads).long()
    if step.reader.coverage:
        assert buffers.cover is not None
        counts = buffers.cover.told[row, 0].cpu().long()
        inputs = replace(inputs, known=known(mine), reduction=Reduction.MEAN_SOFTMAX)
        scores = step.method.score(ops, inputs)
        judge_counts(step, scores, inputs, counts)
    elif held is not None:
        scores = torch.full((1, heads, total), -torch.inf)
        scores[0, :, : held.shape[1]] = held[:, :total]
    else:
        scores = step.method.score(ops, inputs)
    rank = scores[0, :, :total].clone()
    begin, end = int(inputs.candidates.begin), int(inputs.candidates.end)
    plain = rank.clone()
    rank[:, :begin] = rank[:, end:total] = torch.inf
    logical = buffers.logical[row, :, : int(counts.max())].cpu().long()
    for head in range(heads):
        count = int(counts[head])
        kept_best(row, logical[head : head + 1, :count], rank[head : head + 1], count)
    return Chosen(mine, logical, counts, plain)


def known(mine: Row) -> torch.Tensor:
    """Log-sum-exp of what a row reads in any case."""
    ops, inputs = load_ops("reference"), mine.inputs
    kept = KeptUnits.of(inputs.candidates, inputs.num_units)
    tail = torch.tensor(mine.plan.tail, dtype=torch.int32)
    return ops.known(inputs.q, inputs.keys, kept, tail, inputs.scale, inputs.unit_size)


def judge_counts(
    step: MethodStep, scores: torch.Tensor, inputs: ScoreInputs, counts: torch.Tensor
) -> None:
    """About as many units of each head as the reference takes.

    Raises:
        AssertionError: a head took clearly more or fewer.
    """
    goal = Goal(torch.tensor([step.reader.coverage]), torch.zeros(1, dtype=torch.int32))
    want = covering_selection(load_ops("reference"), scores, inputs, goal).counts[0].long()
    band = (want * ALIKE).clamp(min=2.0)
    near("units that a coverage takes", counts, want, band, ("head",))  # type: ignore[arg-type]


def hide_unread(step: MethodStep) -> None:
    """NaN for V of the first layer where no row read a token for a head."""
    scene, buffers = step.scene, step.fused.buffers
    counts = torch.zeros(scene.shape.batch, scene.extents.heads, dtype=torch.int64)
    counts += buffers.plan[4, : len(counts), None].cpu()
    if buffers.cover is not None:
        counts = buffers.cover.told[: len(counts), 0].cpu().long()
    for head in range(scene.extents.heads):
        kept = torch.zeros(scene.slots // step.own, dtype=torch.bool, device=scene.device)
        for row in range(scene.shape.batch):
            kept[buffers.selected[row, head, : int(counts[row, head])].long()] = True
        values = scene.kv[0][1].unflatten(0, (-1, step.own))[:, :, head]
        values.masked_fill_(~kept[:, None, None], torch.nan)


def judge_result(step: MethodStep, one: Chosen, out: torch.Tensor) -> None:
    """Attention over what was chosen, joined with what answers for the rest.

    Raises:
        AssertionError: a channel errs.
    """
    mine, ops = one.row, load_ops("reference")
    inputs, plan = mine.inputs, mine.plan
    heads, unit = len(one.counts), inputs.unit_size
    want, band = torch.empty(out.shape).double(), torch.empty(out.shape).double()
    lse = torch.empty(1, *out.shape[:2])
    eps = EPS[step.scene.extents.dtype]
    for head in range(heads):
        units = one.logical[head, : int(one.counts[head])]
        tokens = (units[:, None] * unit + torch.arange(unit)).flatten()
        tokens = tokens[: len(tokens) - unit + int(plan.tail[0])]
        keys, values = (pool[tokens, head].double() for pool in (inputs.keys, mine.values))
        logits = inputs.q[0, head].double() @ keys.T * inputs.scale
        weights = logits.softmax(-1)
        lse[0, head] = logits.logsumexp(-1).float()
        want[head] = weights @ values
        band[head] = 2 * eps * (weights @ values.abs()) + 2.02 * eps * want[head].abs() + 1e-5
    if mine.rest is not None:
        spans = inputs.candidates
        spans = Candidates(spans.unit_table, spans.begin * unit, spans.end * unit)
        logical = one.logical[None].int()
        selection = Selection(logical, logical, one.counts[None].int())
        reach = inputs.counts * unit * ResidualSummary.REACH
        how = (inputs.scale, inputs.reduction, reach, unit)
        shares = ops.weigh(inputs.q, mine.rest, spans, selection, *how)
        joined, _ = ops.estimate(shares, mine.rest, want[None].float(), lse)
        want = joined[0].double()
        band = band + 8 * eps * want.abs().amax()
    near("attention", out.cpu(), want, band, AXES)
