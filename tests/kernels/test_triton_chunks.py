"""Rows that choose in finer units than pages have: ShadowKV's chunks beside whole units.

What is chosen is judged by the reference's scores over the fields that the kernel wrote itself.
"""

from dataclasses import replace

import pytest
import torch
from sgl_sparsekv.kernels.triton import buffers, fused
from triton_kit import DEVICE, REFERENCE, compare_attention
from triton_scene import OF_CHUNKS, Request, Scene, Step, make_scene

from sgl_sparsekv.segments.landmarks import CHUNK
from sgl_sparsekv.selection.shadowkv import ALWAYS, ShadowKV
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def chunked(unit: int) -> list[Request]:
    """Rows by chunk beside rows by unit, a dense one, and one that fits its budget."""
    finer = (unit // CHUNK).bit_length() - 1
    return [
        Request(500, "landmark", 201, 16, 64, finer=finer),
        Request(266, "min_max", 160, 16, 64),
        Request(315, "landmark", 200, 0, 0, dense_layers=1, finer=finer),
        Request(90, "landmark", 512, finer=finer),
        Request(200, "nothing", 256),
        Request(411, "landmark", 330, 40, 100, finer=finer),
    ]


def wanted(scene: Scene, fields: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    """The reference's scores `[H, chunks]` of a row, over given fields."""
    plan, batch = scene.plan(), scene.own_units(row)
    begin, end, units, count = (
        torch.tensor([int(x[row])], dtype=torch.int32)
        for x in (plan.begin, plan.end, plan.num_units, plan.counts)
    )
    table = batch.table[row : row + 1, : int(units)]
    inputs = ScoreInputs(
        batch.q[row : row + 1].float(), batch.keys, {k: v.float() for k, v in fields.items()}, None,
        Candidates(table, begin, end), units, count, batch.q.shape[-1] ** -0.5,
        scene.shape.reduction, CHUNK,
    )  # fmt: skip
    return ShadowKV().score(REFERENCE, inputs)[0]


def check_chosen(scene: Scene, row: int, chosen: torch.Tensor, scores: torch.Tensor) -> None:
    """Ascending, exact in number, complete in sinks, window and outliers, and among the best."""
    plan = scene.plan()
    begin, end, units, count = (
        int(x[row]) for x in (plan.begin, plan.end, plan.num_units, plan.counts)
    )
    assert (chosen.diff() > 0).all() and chosen.shape[1] == count and int(chosen.max()) < units
    always = {*range(begin), *range(end, units)}
    for head in range(len(chosen)):
        read = set(chosen[head].tolist())
        outliers = set(torch.nonzero(scores[head] == ALWAYS).flatten().tolist())
        assert always | outliers <= read and outliers
        inside = sorted(read - always)
        others = sorted(set(range(begin, end)) - read)
        assert scores[head][inside].min() >= scores[head][others].max() - 1e-4


@pytest.mark.parametrize("shape,reduction,chunk", [
    ((2, 4, 128, torch.bfloat16, 16, 64), Reduction.MAX_SOFTMAX, 2048),
    ((1, 7, 64, torch.float16, 32, 32), Reduction.MEAN_SOFTMAX, 16),
    ((1, 1, 96, torch.float32, 64, 64), Reduction.MAX_SOFTMAX, 16),
])  # fmt: skip
def test_chunks_beside_units(
    shape: tuple, reduction: Reduction, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers; the first finds units without a stamp. `chunk` scores are one program's."""
    for module in (fused, buffers):
        monkeypatch.setattr(module, "SELECT_CHUNK", chunk)
    requests = chunked(shape[4])
    scene = make_scene(requests, *shape, reduction=reduction)
    full = scene.full_units()
    scene.seal(full[torch.rand(len(full)) < 0.5])
    step, plan = Step.of(scene), scene.plan()
    step.begin()
    scale = scene.batch.q.shape[-1] ** -0.5
    for layer in range(2):
        out = step.decode(layer)
        fields = {name: step.fields[name].cpu() for name in OF_CHUNKS}
        for row, request in enumerate(requests):
            dense = bool(plan.dense[row]) or layer < request.dense_layers
            batch, lists = scene.own_units(row), None
            if not dense and request.formula != "nothing":
                lists = step.lists(row, int(plan.counts[row]))
            if lists is not None and request.formula == "landmark":
                check_chosen(scene, row, lists, wanted(scene, fields, row))
            compare_attention(out, None, batch, row, lists, scale)
    step.end()
    assert not step.fused.buffers.tickets.any()
    alone = Step.of(replace(scene, sealed=step.sealed.cpu(), fields=step.fields))
    for row in (0, 2, 5):
        alone.begin([row])
        assert torch.equal(alone.decode(1, [row])[0], out[row])


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_landmarks_are_those_of_the_keys(dtype: torch.dtype) -> None:
    """Within rounding; zeros, equal keys, and what is no finite number, which counts as zero."""
    scene = make_scene([Request(500, "landmark", 128, finer=1)], dim=96, dtype=dtype)
    slots = scene.batch.slots(0)
    scene.batch.keys[slots[:24]] = 0
    scene.batch.keys[slots[24:32]] = 1.5
    scene.batch.keys[slots[40], 0, 3] = torch.inf
    scene.batch.keys[slots[45]] = torch.nan
    step = Step.of(scene)
    step.begin()
    step.fused.summarise(scene.batch.keys.to(DEVICE), step.fields)
    scene.seal(scene.full_units())
    for name, ulps in (("landmark", 4), ("misfit", 8)):
        got, want = step.fields[name].cpu().double(), scene.fields[name].double()
        assert torch.equal(got.isnan(), want.isnan()) and not got.isnan().all()
        largest = want.abs().amax(-1, keepdim=True).nan_to_num()
        error = (got - want).abs().nan_to_num()
        assert (error <= 2 * ulps * ROUNDING[dtype] * largest).all(), name


def test_rows_on_one_prefix_read_its_landmarks_once() -> None:
    """What stands together gives every row what it gets alone."""
    requests = [
        Request(1300, "landmark", 256, finer=1), Request(1100, "landmark", 200, sink=70, finer=1),
        Request(1200, "min_max", 160, window=9),
    ]  # fmt: skip
    scene = make_scene(requests, heads=1)
    for row in (1, 2):
        here, first = scene.places[row], scene.places[0]
        scene.req_to_token[here, :1040] = scene.req_to_token[first, :1040]
        scene.batch.table[row, :65] = scene.batch.table[0, :65]
    full = scene.full_units().unique()
    scene.seal(full[torch.rand(len(full)) < 0.9])
    step = Step.of(scene)
    step.fused.forget(step.sealed, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    step.begin()
    out, held = step.decode(), step.fused.buffers
    assert held.shared[0] == 2**31 - 1 and held.shared[1] == 65
    held.table[1, :64] = 0  # nobody's units: their fields are NaN
    step.score()
    assert not held.logits[1, :, :, 16:128].isnan().any(), "the second row's own table was read"
    alone = Step.of(scene)
    for row in range(3):
        alone.begin([row])
        assert torch.equal(alone.decode(0, [row])[0], out[row])
