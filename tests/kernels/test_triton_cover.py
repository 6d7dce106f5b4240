"""Rows that ask for a coverage, in whole decode steps: as many units as the reference reads.

Scores may differ from the reference's within rounding, so a count may differ by the units whose
scores lie at the threshold.
"""

from dataclasses import replace

import pytest
import torch
from triton_kit import DEVICE, REFERENCE, compare_attention
from triton_scene import Request, Scene, Step, make_scene

from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.sampling import sampled_ranking
from sgl_sparsekv.types import Candidates, KeptUnits, Reduction, ScoreInputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
COVERED = range(2, 4)
METHODS = {"min_max": "quest", "mean_std": "mean_std", "exact": "oracle"}
REQUESTS = [
    Request(700, "min_max", 512), Request(610, "exact", 480, 40, 100),
    Request(520, "mean_std", 500, 0, 0, dense_layers=3), Request(333, "min_max", 160),
    Request(700, "min_max", 512), Request(333, "position", 160), Request(90, "mean_std", 500),
    Request(455, "mean_std", 400),
]  # fmt: skip
ASKED = [0.9, 0.8, 0.95, 0.0, 0.0, 0.0, 0.9, 0.6]
"""A row with a goal beside one like it without, one that is dense at first, and one that fits."""


def begun(scene: Scene, asked: list[float]) -> Step:
    """A step whose requests ask for so much; keys grow sharp, so that a part covers most."""
    step = Step.of(replace(scene, shape=replace(scene.shape, covered=COVERED)))
    cover = step.fused.buffers.cover
    cover.asked[scene.places.to(DEVICE)] = torch.tensor(asked, device=DEVICE)
    cover.chosen.fill_(-7)
    step.begin()
    return step


def inputs_of(scene: Scene, row: int) -> ScoreInputs:
    """What a method may look at to share a row's attention out."""
    own, plan, request = scene.own_units(row), scene.plan(), scene.requests[row]
    begin, end, total, count, tail = (
        torch.from_numpy(part[row : row + 1]).int()
        for part in (plan.begin, plan.end, plan.num_units, plan.counts, plan.tail)
    )
    q, scale = own.q[row : row + 1], own.q.shape[-1] ** -0.5
    spans = Candidates(own.table[row : row + 1, : int(total)], begin, end)
    kept = KeptUnits.of(spans, total)
    fields = {}
    summaries = load_method(METHODS[request.formula]).summaries
    for summary in summaries:
        fields[summary.name] = torch.full_like(scene.fields[summary.name], torch.nan)
        full = spans.unit_table[0, int(begin) : int(end)].long()
        REFERENCE.summarise(summary, own.keys, fields[summary.name], full)
    known = REFERENCE.known(q, own.keys, kept, tail, scale, own.unit_size)
    return ScoreInputs(
        q, own.keys, fields, None, spans, total, count, scale, Reduction.MEAN_SOFTMAX,
        own.unit_size, known,
    )  # fmt: skip


def check_counts(scene: Scene, row: int, goal: float, chosen: torch.Tensor) -> None:
    """Of the KV heads of a row `[H]`."""
    inputs = inputs_of(scene, row)
    scores = load_method(METHODS[scene.requests[row].formula]).score(REFERENCE, inputs)
    ranking = sampled_ranking(REFERENCE, scores, inputs, torch.tensor([goal]))
    units = (inputs.candidates, inputs.num_units, inputs.counts)
    nobody, slack = torch.zeros(1, dtype=torch.int32), 2e-3
    most, least = (
        REFERENCE.allot(ranking.scores, *units, ranking.lowest + off, nobody)[0]
        for off in (-slack, slack)
    )
    assert ((least <= chosen) & (chosen <= most)).all(), (least, chosen, most)


def check_read(step: Step, row: int, head: int, count: int, out: torch.Tensor) -> None:
    """That what one KV head of a row was told to read is what it attended to."""
    batch, held, only = step.scene.batch, step.fused.buffers, slice(head, head + 1)
    units = held.logical[row, only, :count].cpu()
    assert torch.equal(held.selected[row, only, :count].cpu(), batch.table[row][units.long()])
    assert (units.diff() > 0).all()
    parts = {name: getattr(batch, name)[:, only] for name in ("q", "keys", "values")}
    scale = batch.q.shape[-1] ** -0.5
    compare_attention(out[:, only], None, replace(batch, **parts), row, units, scale)


@pytest.mark.parametrize(("dtype", "heads", "group", "dim", "unit", "reduction"), [
    (torch.float32, 2, 4, 64, 16, Reduction.MAX_SOFTMAX),
    (torch.bfloat16, 1, 3, 96, 32, Reduction.MEAN_SOFTMAX),
])  # fmt: skip
def test_each_head_reads_as_much_as_the_reference(
    dtype: torch.dtype, heads: int, group: int, dim: int, unit: int, reduction: Reduction
) -> None:
    """Of rows with a goal; the others read their budgets. What is chosen is what is attended."""
    scene = make_scene(REQUESTS, heads, group, dim, dtype, unit, reduction=reduction)
    scene.batch.q.mul_(3)
    full = scene.full_units()
    scene.seal(full[torch.rand(len(full)) < 0.7])
    step, plan = begun(scene, ASKED), scene.plan()
    held, seen = step.fused.buffers, []
    for layer in COVERED:
        out = step.decode(layer)
        chosen = held.cover.chosen.cpu()
        for row, request in enumerate(REQUESTS):
            dense = layer < request.dense_layers or plan.dense[row]
            if dense:
                compare_attention(out, None, scene.batch, row, None, dim**-0.5)
                continue
            if ASKED[row]:
                check_counts(scene, row, ASKED[row], chosen[row])
                told = held.cover.told[row, layer - COVERED.start].cpu()
                assert torch.equal(told, chosen[row])
                seen += chosen[row].tolist()
            else:
                assert (chosen[row] == int(plan.counts[row])).all()
            for head, count in enumerate(chosen[row].tolist()):
                check_read(step, row, head, count, out)
    assert len(set(seen)) > 2, "nothing was adapted"
    assert not held.tickets.any()


def test_a_row_is_covered_alike_alone() -> None:
    """To the bit, whoever stands beside it."""
    scene = make_scene(REQUESTS[:5], heads=1)
    step = begun(scene, ASKED[:5])
    out = step.decode(2)
    chosen = step.fused.buffers.cover.chosen.clone()
    for row in (0, 1, 3):
        step.begin([row])
        assert torch.equal(step.decode(2, [row])[0], out[row])
        assert torch.equal(step.fused.buffers.cover.chosen[0], chosen[row])


def test_a_server_without_coverage_has_no_room_for_it() -> None:
    """Nor launches."""
    scene = make_scene(REQUESTS[:2], heads=1)
    assert Step.of(scene).fused.buffers.cover is None
