"""What one row of a step can see of a layer, copied to the host: there the reference computes."""

from dataclasses import dataclass

import numpy as np
import torch

from bench.gpu.harvest.differ import same
from bench.gpu.methods import DEFAULT, MethodStep
from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.page_metadata.records import SegmentRecords
from sgl_sparsekv.segment_records import ResidualIndex, SegmentBounds, SegmentIndex
from sgl_sparsekv.selection.policy import RowOptions, RowPlan, plan_rows
from sgl_sparsekv.summaries import BoundSummary, CodeSummary, SegmentSummary
from sgl_sparsekv.types import Candidates, ScoreInputs

Index = SegmentIndex | ResidualIndex | SegmentBounds | None


@dataclass
class Row:
    """What one row can see, on the host, in its own order.

    Attributes:
        inputs: of scoring: tables count from 0.
        values: `[slots, H, Dv]`.
        plan: of the host.
        rest: clusters that answer for what is not read, or None.
    """

    inputs: ScoreInputs
    values: torch.Tensor
    plan: RowPlan
    rest: ResidualIndex | None


def seen(step: MethodStep, row: int, later: int = 0) -> Row:
    """Copy what a row can see of the first layer."""
    scene, made, unit, own = step.scene, step.metadata, step.unit, step.own
    slots = scene.req_to_token[scene.places[row]].long()
    units = slots[::unit] // unit
    keys, values = (pool[slots].cpu() for pool in scene.kv[0])
    fields = {
        s.name: made.fields(s.name, 0)[made.geometry.finer(units, s.tokens)].cpu()
        for s in made.summaries
    }  # fmt: skip
    plan = host_plan(step, row, later)
    counts = [torch.tensor(x, dtype=torch.int32) for x in (plan.num_units, plan.counts)]
    begin, end = (torch.tensor(x, dtype=torch.int32) for x in (plan.begin, plan.end))
    table = torch.arange(len(slots) // own, dtype=torch.int32)[None]
    indexes = {name: copied(step, held, row) for name, held in made.records.items()}
    kinds = [held.summary for held in made.records.values()]
    ranks = step.method.segments(DEFAULT) is not None
    index = indexes[kinds[0].name] if ranks else None
    rests = [i for i in indexes.values() if isinstance(i, ResidualIndex)]
    inputs = ScoreInputs(
        scene.q[row : row + 1].cpu(), keys, fields, index, Candidates(table, begin, end), *counts,
        scene.extents.scale, step.fused.shape.reduction, own,
    )  # fmt: skip
    return Row(inputs, values, plan, rests[0] if step.reader.estimate else None)


def host_plan(step: MethodStep, row: int, later: int = 0) -> RowPlan:
    """The plan of one row as the host makes it."""
    one, length = step.scene.extents, int(step.scene.lengths[row]) + later
    columns = (np.full(1, n, dtype=np.int64) for n in (one.budget, one.sink, one.window))
    units = np.full(1, step.own, dtype=np.int64)
    geometry = Geometry(one.page, step.unit)
    return plan_rows(np.array([length], dtype=np.int64), RowOptions(*columns), geometry, units)


def copied(step: MethodStep, held: SegmentRecords, row: int) -> Index:
    """Records that a row reads, counted from 0."""
    summary, size = held.summary, held.summary.segment_size
    found = records_of(step, held.summary, row)
    arrays = {name: array[found.clamp(min=0)].cpu() for name, array in held.arrays[0].items()}
    table = torch.arange(len(found), device=found.device).masked_fill(found < 0, -1)
    table = table[None].int().cpu()
    if isinstance(summary, BoundSummary):
        return SegmentBounds(arrays["planes"], table, size)
    if isinstance(summary, CodeSummary):
        return SegmentIndex(arrays["codes"], arrays["codebooks"], table)
    return ResidualIndex(**arrays, table=table)


def records_of(step: MethodStep, summary: SegmentSummary, row: int) -> torch.Tensor:
    """Record of every whole segment of a row, int64, -1 for none.

    Raises:
        AssertionError: others than every third have none.
    """
    scene, buffers = step.scene, step.fused.buffers
    assert buffers.records is not None
    kind = [k.summary.name for k in step.fused.shape.records].index(summary.name)
    whole = int(scene.lengths[row]) // summary.segment_size
    slots = scene.req_to_token[scene.places[row]].long()
    last = slots[summary.segment_size - 1 :: summary.segment_size][:whole]
    found = buffers.records.of_page[kind, last // scene.extents.page].long()
    built = torch.arange(whole, device=found.device) % 3 != 1
    same(f"{summary.name}: records of row {row}", found >= 0, built, ("segment",))
    return found
