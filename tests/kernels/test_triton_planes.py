"""Planes that methods bring: compiled into the kernels, they give what their plain torch gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import make_batch
from sgl_sparsekv.kernels.triton import fused, load
from test_triton_parity import compare_scores
from test_triton_step import check_layer, check_summaries
from triton_kit import ALL, REDUCTIONS, HostOps, candidate_fields
from triton_scene import Request, Step, make_scene

from bench.gpu.variants import VARIANT, Variant, made
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.selection.quest_int8 import QuestInt8
from sgl_sparsekv.summaries import PageSummary
from sgl_sparsekv.types import Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
PACKAGE = Path(__file__).parents[1] / "helpers" / "box_middle"
PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
ROWS = [
    Request(700, "own", 256, 16, 64),
    Request(520, "min_max", 200, 0, 0, dense_layers=1),
    Request(610, "own", 256, 40, 100),
    Request(333, "own", 160, 16, 64, dense_layers=1),
    Request(65, "own", 512),
]


@pytest.fixture(params=("quest_int8", "another package"))
def summary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PageSummary:
    """One that brings its planes, under the name of its formula."""
    found: PageSummary = QuestInt8.summary
    if request.param == "another package":
        monkeypatch.syspath_prepend(str(PACKAGE))
        from box_middle import BoxMiddle

        found = BoxMiddle.summary
    found = replace(found, name="own")
    monkeypatch.setitem(ALL, "own", found)
    return found


@pytest.mark.parametrize("shape", [
    ([511, 40, 17], 2, 4, 128, torch.bfloat16, 16), ([700, 130], 1, 3, 96, torch.float16, 32),
    ([300], 2, 1, 80, torch.float32, 64),
])  # fmt: skip
def test_planes_and_scores(summary: PageSummary, shape: tuple) -> None:
    """Only units that are summarised are written, and only candidates are read."""
    batch, ops = make_batch(*shape), HostOps()
    scale = batch.q.shape[-1] ** -0.5
    fields = candidate_fields(batch, "own")
    got = candidate_fields(batch, "own", ops)
    assert got.dtype == fields.dtype == (summary.dtype or batch.keys.dtype)
    assert torch.equal(got.isnan(), fields.isnan())
    if summary.dtype is not None:
        assert torch.equal(got, fields)
    for reduction in REDUCTIONS:
        found = ops.score(summary, batch.q, fields, batch.candidates, scale, reduction)
        compare_scores(found, "own", batch, fields, reduction)


@pytest.mark.parametrize("shape,reduction", [
    ((2, 4, 128, torch.bfloat16, 16, 64), Reduction.MAX_SOFTMAX),
    ((1, 3, 64, torch.float16, 32, 32), Reduction.MEAN_SOFTMAX),
])  # fmt: skip
def test_a_step_beside_other_methods(
    summary: PageSummary, shape: tuple, reduction: Reduction
) -> None:
    """Some units have stamps; the first layer fills the fields of the others."""
    scene = make_scene(ROWS, *shape, reduction=reduction)
    full = scene.full_units()
    scene.seal(full[torch.rand(len(full)) < 0.5])
    step = Step.of(scene)
    step.begin()
    for layer in range(2):
        check_layer(step, layer, step.decode(layer))
    step.end()
    check_summaries(scene, step)


def test_rows_on_one_prefix_read_its_planes_together(summary: PageSummary) -> None:
    """The same bits as each of them alone."""
    scene = make_scene([Request(640, "own", 128), Request(640, "own", 96, 0, 16)])
    scene.batch.table[1] = scene.batch.table[0]
    first, second = scene.places.tolist()
    scene.req_to_token[second] = scene.req_to_token[first]
    scene.batch.lengths[1] = scene.batch.lengths[0] - 40
    scene.seal(scene.full_units())
    step = Step.of(scene)
    step.begin()
    out = step.decode(0)
    for row in range(2):
        alone = Step.of(scene)
        alone.begin([row])
        assert torch.equal(alone.decode(0, [row])[0], out[row])


@pytest.mark.parametrize(("kernels", "why"), [
    ("nowhere.at_all:PLANES", "must be in nowhere.at_all:PLANES: No module named 'nowhere'"),
    ("sgl_sparsekv.kernels.triton.planes:NOTHING", "has no attribute 'NOTHING'"),
    ("sgl_sparsekv.kernels.triton.planes:planes_of", "must be a Planes of device triton, got <fun"),
])  # fmt: skip
def test_planes_that_are_not_there_are_named(kernels: str, why: str) -> None:
    scene = make_scene([Request(300, budget=96)])
    brought = replace(QuestInt8.summary, kernels=kernels)
    with pytest.raises(UnsupportedSetup) as error:
        load().fused(replace(scene.shape, own=brought))
    assert why in str(error.value) and "\n" not in str(error.value)


def test_planes_of_a_method_are_for_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """But in the interpreter."""
    scene = make_scene([Request(300, budget=96)], dtype=torch.float32)
    shape = replace(scene.shape, own=QuestInt8.summary)
    load().fused(shape)
    monkeypatch.setattr(fused, "interpreted", lambda: False)
    with pytest.raises(UnsupportedSetup, match="cannot be used with a float32 cache on a GPU"):
        load().fused(shape)
    load().fused(replace(scene.shape))


def test_the_page_shows_a_package_that_works() -> None:
    """As it is tested here, in under 60 lines."""
    page, lines = PAGE.read_text(), 0
    for path in sorted(PACKAGE.glob("*.py")):
        text = path.read_text()
        assert f"```python\n{text}```" in page, f"docs/adding_a_method.md must show {path.name}"
        lines += text.count("\n")
    points = (PACKAGE / "box_middle-1.0.dist-info" / "entry_points.txt").read_text()
    assert points.splitlines()[1] in page and 40 < lines < 60


def test_a_copy_of_the_kernels_takes_its_own_functions() -> None:
    """As benchmarks and mutants make it."""
    scene = make_scene([Request(300, budget=96)])
    shape = replace(scene.shape, own=QuestInt8.summary)
    own = [one.fused(shape).own for one in (load(), made(Variant("a copy")))]
    modules = [found.write.fn.__module__ for found in own if found]
    assert modules[0] == "sgl_sparsekv.kernels.triton.int8_bounds"
    assert modules[1].startswith(VARIANT) and modules[1].endswith(".int8_bounds")
