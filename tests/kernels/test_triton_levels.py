"""Rows that look at units in the best segments alone, beside rows of other methods.

Segments that are open are judged by the reference's bounds, and what is chosen by the reference's
scores of the units in them: both may differ within rounding.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from cases import make_batch
from sgl_sparsekv.kernels.reference.rows import reduce_group
from sgl_sparsekv.kernels.triton import buffers
from sgl_sparsekv.kernels.triton.segment_bounds import bound_segments
from test_triton_step import check_chosen as check_others
from triton_kit import DEVICE, REFERENCE, compare_attention
from triton_scene import Request, Scene, Step, make_scene

from sgl_sparsekv.segment_records import SegmentBounds
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.two_level import (
    BOUNDS,
    OVERSAMPLING,
    SEGMENT,
    _best_segments,
    _segments_of,
)
from sgl_sparsekv.types import Candidates, RecordShape, Reduction, ScoreInputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
LEVELS = ("two_level", "two_level_exact")
SLACK = 1e-4
"""Within which two scores may be taken for one another."""
MIXED = [
    Request(1350, "two_level", 130, 0, 0),
    Request(1000, "two_level_exact", 300, 40, 100),
    Request(333, "min_max", 270, 16, 64),
    Request(500, "two_level_exact", 440, 0, 0, dense_layers=1),
    Request(400, "two_level", 384, 140, 33),
    Request(90, "two_level", 512),
    Request(1, "two_level_exact", 128),
    Request(500, "two_level_exact", 190, 40, 100),
]
"""Budgets that leave segments closed, that nearly hold the context, that do hold it, and one that
sinks and window use up."""


@dataclass
class LevelStep(Step):
    """A step with records of segments.

    Attributes:
        planes: `[layers, records, H, 2, D]`; NaN where there is no record.
    """

    planes: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def build(self, missing: int = 0) -> None:
        """Records of all whole segments, but every `missing`-th of a row."""
        scene, shape = self.scene, self.scene.shape
        extents = (2, shape.records[0].capacity, shape.heads, 2, shape.head_dim)
        self.planes = torch.full(extents, torch.nan, dtype=shape.dtype, device=DEVICE)
        jobs = [
            [int(place), nth, -1]
            for place, request in zip(scene.places, scene.requests, strict=True)
            for nth in range(request.length // SEGMENT)
            if not missing or nth % missing != missing - 1
        ]
        keys = scene.batch.keys.to(DEVICE)
        pointers = (torch.tensor([keys.data_ptr()] * 2, device=DEVICE),) * 2
        told = torch.tensor(jobs, dtype=torch.int32, device=DEVICE)
        table, arrays = scene.req_to_token.to(DEVICE), {"planes": self.planes}
        self.fused.build(BOUNDS.name, told, table, (keys, keys), pointers, arrays, 16)

    def decode(self, layer: int = 0, rows: list[int] | None = None, paged: object = None):
        """As `Step.decode`, with the layer's records."""
        batch = self.scene.batch
        q = batch.q if rows is None else batch.q[rows]
        parts = [x.to(DEVICE) for x in (q, batch.keys, batch.values)]
        how = (self.fields, batch.q.shape[-1] ** -0.5, paged)
        records = {BOUNDS.name: {"planes": self.planes[layer]}}
        return self.fused.decode(self.sealed, layer, *parts, *how, records).cpu().clone()

    def opened(self, row: int) -> torch.Tensor:
        """int32 `[H, segments]`, of the last layer."""
        return self.fused.buffers.levels.opened[row].cpu().clone()


def make_levels(requests: list[Request], *shape, drift: float = 1.0, **how) -> Scene:
    """A scene whose server has both methods; segments differ as topics of a text do."""
    scene = make_scene(requests, *shape, **how)
    batch, rng = scene.batch, torch.Generator().manual_seed(5)
    for row, length in enumerate(batch.lengths):
        slots, extents = batch.slots(row), (length // SEGMENT + 1, *batch.keys.shape[1:])
        topics = torch.randn(extents, generator=rng) * drift
        keys = batch.keys[slots].float() + topics.repeat_interleave(SEGMENT, 0)[:length]
        batch.keys[slots] = keys.to(batch.keys.dtype)
    wide = scene.shape
    records = sum(request.length // SEGMENT for request in requests) + 3
    kinds = (RecordShape(BOUNDS, records, wide.pool_units * wide.unit_size // wide.page_size),)
    return replace(scene, shape=replace(wide, formulas=wide.formulas | {*LEVELS}, records=kinds))


def begun(scene: Scene, missing: int = 0, attends: bool = False) -> LevelStep:
    """A step that is planned, with records; it may end where units are chosen."""
    step = LevelStep.of(scene)
    if not attends:
        step.fused._attend = lambda layer, q, *_: q
    step.build(missing)
    step.begin()
    return step


def inputs_of(step: LevelStep, row: int) -> ScoreInputs:
    """What the reference looks at; fields are those that the kernels left."""
    scene, plan = step.scene, step.scene.plan()
    begin, end, units, count = (
        torch.tensor([int(x[row])], dtype=torch.int32)
        for x in (plan.begin, plan.end, plan.num_units, plan.counts)
    )
    batch, held = scene.batch, step.fused.buffers.records
    fields = {"min_max": step.fields["min_max"].cpu().float()}
    records = held.table[0, row : row + 1, : batch.lengths[row] // SEGMENT].cpu()
    return ScoreInputs(
        batch.q[row : row + 1].float(), batch.keys, fields,
        SegmentBounds(step.planes[0].cpu().float(), records, SEGMENT),
        Candidates(batch.table[row : row + 1, : int(units)], begin, end), units, count,
        batch.q.shape[-1] ** -0.5, scene.shape.reduction, batch.unit_size,
    )  # fmt: skip


def check_opened(step: LevelStep, row: int, inputs: ScoreInputs) -> None:
    """As many segments as the reference looks at, and those of the highest bounds."""
    times = OVERSAMPLING if step.scene.requests[row].formula == "two_level" else 1
    wanted = _segments_of(times * inputs.counts * inputs.unit_size)
    found, left = _best_segments(REFERENCE, inputs, wanted)
    bounds = step.fused.buffers.levels.bounds[row].cpu()
    per = SEGMENT // inputs.unit_size
    first, last = int(inputs.candidates.begin) // per, -(-int(inputs.candidates.end) // per)
    for head, opened in enumerate(step.opened(row)):
        chosen = {n for n in found[0, head].tolist() if first <= n < last}
        ours = set(torch.nonzero(opened == 1).flatten().tolist())
        assert len(ours) == len(chosen) and ours <= set(range(first, last))
        for segment in ours ^ chosen:
            assert abs(float(bounds[head, segment] - left[0, head])) < SLACK
        closed = set(range(first, last)) - ours
        if closed:
            assert abs(float(bounds[head, list(closed)].max() - left[0, head])) < SLACK


def scores_of(step: LevelStep, row: int, inputs: ScoreInputs) -> torch.Tensor:
    """Float64 scores `[H, candidates]`, -inf for units that are in closed segments."""
    begin, end = int(inputs.candidates.begin), int(inputs.candidates.end)
    units = inputs.candidates.unit_table[0, begin:end].long()
    planes = inputs.fields["min_max"][units].movedim(1, 0).double()
    bounds = Quest.summary.score(inputs.q[0].double(), planes) * inputs.scale
    if step.scene.requests[row].formula == "two_level_exact":
        return reduce_group(bounds, Reduction.MAX)
    segments = torch.arange(begin, end) * inputs.unit_size // SEGMENT
    opened = step.opened(row)[:, segments] > 0
    scores = torch.full((len(bounds), end - begin), -torch.inf, dtype=torch.float64)
    for head, mine in enumerate(opened):
        scores[head, mine] = reduce_group(bounds[head : head + 1, :, mine], inputs.reduction)[0]
    return scores


def check_row(step: LevelStep, row: int, chosen: torch.Tensor) -> None:
    """Segments that are open, and units that are chosen, among the best."""
    inputs = inputs_of(step, row)
    check_opened(step, row, inputs)
    begin, end, units, count = (
        int(x)
        for x in (inputs.candidates.begin, inputs.candidates.end, inputs.num_units, inputs.counts)
    )
    always = {*range(begin), *range(end, units)}
    scores = scores_of(step, row, inputs)
    assert (chosen.diff() > 0).all() and chosen.shape[1] == count
    for head in range(len(chosen)):
        read = set(chosen[head].tolist())
        assert always <= read <= set(range(units))
        inside = [unit - begin for unit in sorted(read - always)]
        if not inside:
            continue
        threshold = scores[head].sort(descending=True).values[len(inside) - 1]
        assert scores[head][inside].min() >= threshold - SLACK
        others = scores[head].clone()
        others[inside] = -torch.inf
        assert others.max() <= threshold + SLACK


@pytest.mark.parametrize("shape,reduction,missing,layers", [
    ((1, 4, 128, torch.bfloat16, 16, 64), Reduction.MAX_SOFTMAX, 3, (0, 1)),
    ((2, 7, 64, torch.float16, 32, 32), Reduction.MEAN_SOFTMAX, 0, (1,)),
    ((1, 1, 96, torch.float32, 64, 64), Reduction.MAX_SOFTMAX, 4, (1,)),
])  # fmt: skip
def test_a_step(shape: tuple, reduction: Reduction, missing: int, layers: tuple[int, ...]) -> None:
    """The first layer finds units without a stamp; a row alone gets what it gets among others.

    Of one shape all is looked at up to what comes out, of the others what is chosen.
    """
    scene = make_levels(MIXED, *shape, reduction=reduction)
    full = scene.full_units()
    scene.seal(full[torch.rand(len(full)) < 0.7])
    attends, plan = len(layers) > 1, scene.plan()
    step = begun(scene, missing, attends)
    for layer in layers:
        out = step.decode(layer)
        for row, request in enumerate(MIXED):
            lists = None
            if not plan.dense[row] and layer >= request.dense_layers:
                lists = step.lists(row, int(plan.counts[row]))
                if request.formula in LEVELS:
                    check_row(step, row, lists)
                else:
                    check_others(scene, row, lists)
            scale = scene.batch.q.shape[-1] ** -0.5
            if attends:
                compare_attention(out, None, scene.batch, row, lists, scale)
    step.end()
    assert not step.fused.buffers.tickets.any()
    lists = [step.lists(row, int(plan.counts[row])) for row in (0, 1)]
    for row in (0, 1):
        step.begin([row])
        assert torch.equal(step.decode(1, [row])[0], out[row])
        held = step.fused.buffers.logical[0, :, : lists[row].shape[1]]
        assert torch.equal(held.cpu(), lists[row])


def test_units_of_closed_segments_are_not_read() -> None:
    """Their bounds are NaN, and nothing changes."""
    requests = [Request(1400, "two_level", 64, 0, 30), Request(1300, "two_level_exact", 120)]
    scene = make_levels(requests, heads=2, drift=4.0)
    scene.seal(scene.full_units())
    step, counts = begun(scene), scene.plan().counts.tolist()
    step.decode()
    lists = [step.lists(row, count) for row, count in enumerate(counts)]
    for row in range(2):
        segments = torch.arange(scene.batch.lengths[row] // 16) * 16 // SEGMENT
        for head, opened in enumerate(step.opened(row)):
            closed = scene.batch.table[row, : len(segments)][opened[segments] == 0].long()
            assert len(closed) > len(segments) // 8
            step.fields["min_max"][closed.to(DEVICE), head] = torch.nan
    step.decode()
    for row, count in enumerate(counts):
        assert torch.equal(step.lists(row, count), lists[row])


def test_exact_rows_choose_what_quest_does() -> None:
    """By the highest bound of the group, whatever is missing and however segments differ: they
    stay closed, or are opened in either round."""
    seen: set[int] = set()
    for drift, missing in ((0.0, 0), (1.0, 2), (4.0, 0)):
        requests = [Request(900, "two_level_exact", 200), Request(500, "two_level_exact", 400)]
        scene = make_levels(requests, 1, 2, 64, torch.float32, drift=drift)
        step = begun(scene, missing)
        step.decode()
        for row in range(2):
            inputs = inputs_of(step, row)
            how = (inputs.candidates, inputs.scale, Reduction.MAX)
            flat = REFERENCE.score(Quest.summary, inputs.q, inputs.fields["min_max"], *how)
            spans = (inputs.candidates, inputs.num_units, inputs.counts)
            wanted = REFERENCE.select(flat, *spans).logical[0]
            assert torch.equal(step.lists(row, int(inputs.counts)), wanted)
            seen |= set(step.opened(row).flatten().tolist())
    assert seen == {0, 1, 2}


def test_a_missing_stamp_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them are listed; the others are summarised where they are met."""
    monkeypatch.setattr(buffers, "PENDING_CAPACITY", 5)
    requests = [Request(700, "two_level", 130), Request(600, "two_level_exact", 160)]
    scene, found = make_levels(requests, heads=1, dim=96, page=32), []
    full = scene.full_units()
    for share in (0.0, 0.5, 1.0):
        case = scene.copy()
        case.seal(full[: int(share * len(full))])
        step = begun(case, 4)
        step.decode()
        counts = case.plan().counts.tolist()
        found.append([step.lists(row, n) for row, n in enumerate(counts)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_is_not_a_number_is_looked_at() -> None:
    """A key that is none: its segment and its unit come first."""
    requests = [Request(1000, method, 96, 16, 32) for method in LEVELS]
    scene = make_levels(requests, 1, 2, 64, torch.float32)
    for row in range(2):
        scene.batch.keys[scene.batch.slots(row)[700]] = torch.nan
    step = begun(scene)
    step.decode()
    for row, count in enumerate(scene.plan().counts.tolist()):
        assert step.opened(row)[0, 700 // SEGMENT] == 1
        if requests[row].formula == "two_level_exact":
            assert 700 // 16 in step.lists(row, count)[0].tolist()


@pytest.mark.parametrize("dim,dtype,unit,page", [
    (96, torch.bfloat16, 16, 64), (80, torch.float16, 64, 64), (64, torch.float32, 128, 128),
    (128, torch.bfloat16, 32, 32),
])  # fmt: skip
def test_records_are_those_of_the_keys(dim: int, dtype: torch.dtype, unit: int, page: int) -> None:
    """Bit for bit, in two layers; of scattered pages, and with what is not a number."""
    batch = make_batch([600, 300], 2, 1, dim, dtype, page)
    slots = torch.zeros(2, 1024, dtype=torch.int32)
    for row, length in enumerate(batch.lengths):
        slots[row, :length] = batch.slots(row).int()
    layers = [batch.keys, batch.keys.flip(0).nan_to_num(1.5).contiguous()]
    layers[0][slots[0, 200], 1, 7] = torch.nan
    layers[0][slots[0, 130], 0, 0] = -torch.inf
    there = [keys.to(DEVICE) for keys in layers]
    planes = torch.full((2, 9, 2, 2, dim), 7, dtype=dtype, device=DEVICE)
    jobs = torch.tensor([[0, n, 8 - n] for n in range(4)] + [[1, 0, -1], [1, 1, 0]])
    pointers = torch.tensor([keys.data_ptr() for keys in there], device=DEVICE)
    told = jobs.int().to(DEVICE)
    bound_segments(SEGMENT, unit, there[0], pointers, slots.to(DEVICE), told, planes)
    got, bits = planes.cpu(), torch.int32 if dtype is torch.float32 else torch.int16
    assert (got[:, 1] == 7).all(), "nobody's record"
    for request, nth, record in jobs[jobs[:, 2] >= 0].tolist():
        rows = slots[request, nth * SEGMENT : (nth + 1) * SEGMENT].long()
        for layer, keys in enumerate(layers):
            want = Quest.summary.summarise(keys[rows][None])[0]
            same = got[layer, record].view(bits) == want.view(bits)
            assert (same | (got[layer, record].isnan() & want.isnan())).all()
