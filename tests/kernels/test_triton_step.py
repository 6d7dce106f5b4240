"""Whole decode steps: what is chosen, what comes out, what is summarised, and when.

Scores may differ from the reference's within rounding, so selections are judged by the reference's
scores: nothing chosen lies below its threshold by more than the scores may err.
"""

import pytest
import torch
from sgl_sparsekv.kernels.triton import buffers, fused
from triton_kit import ALL, DEVICE, REFERENCE, compare_attention, score_band, scores_in
from triton_scene import Request, Scene, Step, make_scene

from sgl_sparsekv.types import Candidates, Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
MIXED = [
    Request(700, "min_max", 256, 16, 64),
    Request(1, "min_max", 128),
    Request(520, "mean_std", 200, 0, 0, dense_layers=1),
    Request(610, "exact", 256, 40, 100),
    Request(333, "position", 160, 16, 64),
    Request(400, "nothing", 256),
    Request(65, "min_max", 512),
]
"""Every formula, a row of one token, one that fits its budget, and one that is dense in layer 0."""
MORE = [
    Request(300, "mean_std", 128, dense_layers=1),
    Request(200, "exact", 96, 0, 30),
    Request(333, "position", 160, 16, 64),
    Request(90, "nothing", 256),
    Request(250, "min_max", 128),
]
FEW = [Request(230, "mean_std", 128), Request(17), Request(200, "min_max", 96, 0, 30)]


class Paged:
    """Stands in for a stock kernel: keeps what it is told to read."""

    def __init__(self, scene: Scene, counts: list[int]) -> None:
        heads = scene.shape.heads
        runs = torch.tensor(counts)[:, None].expand(-1, heads).reshape(-1)
        self.offsets = (runs.cumsum(0) - runs).view(-1, heads).int().to(DEVICE)
        self.pages = torch.full((int(runs.sum()),), -1, dtype=torch.int32, device=DEVICE)

    def run(self, q: torch.Tensor, *_: object, lse: bool) -> tuple[torch.Tensor, None]:
        """Gives zeros."""
        assert q.is_contiguous() and not lse
        return torch.zeros_like(q), None


def is_dense(scene: Scene, row: int, layer: int) -> bool:
    """Whether a row reads everything."""
    request = scene.requests[row]
    fits = bool(scene.plan().dense[row])
    return fits or request.formula == "nothing" or layer < request.dense_layers


def check_chosen(scene: Scene, row: int, chosen: torch.Tensor) -> None:
    """Ascending, exact in number, complete in sinks and window, and among the best."""
    plan, request, batch = scene.plan(), scene.requests[row], scene.batch
    begin, end, units, count = (
        int(x[row]) for x in (plan.begin, plan.end, plan.num_units, plan.counts)
    )
    assert (chosen.diff() > 0).all() and chosen.shape[1] == count and int(chosen.max()) < units
    always = [*range(begin), *range(end, units)]
    for head in range(len(chosen)):
        assert set(always) <= set(chosen[head].tolist())
    if request.formula == "position":
        assert (chosen == torch.tensor([*range(begin), *range(units - count + begin, units)])).all()
        return
    spans = (torch.tensor([begin]), torch.tensor([end]))
    source = batch.keys
    if request.formula != "exact":
        poison = ALL[request.formula].poison
        source = torch.full_like(scene.fields[request.formula], poison)
        full = batch.table[row, begin:end].long()
        REFERENCE.summarise(ALL[request.formula], batch.keys, source, full)
    q, scale = batch.q[row : row + 1], batch.q.shape[-1] ** -0.5
    args = (request.formula, q, source, Candidates(batch.table[row : row + 1], *spans), scale)
    rest = (scene.shape.reduction, batch.unit_size)
    exact, low = (scores_in(wide, *args, *rest) for wide in (torch.float64, torch.float32))
    slack = 2 * score_band(exact, low, request.formula, q, scale).max()
    ranked = count - len(always)
    for head in range(len(chosen)):
        scores = exact[0, head, begin:end]
        threshold = scores.sort(descending=True).values[ranked - 1]
        inside = [unit - begin for unit in chosen[head].tolist() if begin <= unit < end]
        assert len(inside) == ranked and scores[inside].min() >= threshold - slack
        others = scores[[i for i in range(end - begin) if i not in inside]]
        assert not len(others) or others.max() <= threshold + slack


def check_layer(step: Step, layer: int, out: torch.Tensor, rows: list[int] | None = None) -> None:
    """What every row read, and what came of it."""
    scene = step.scene
    scale = scene.batch.q.shape[-1] ** -0.5
    for at, row in enumerate(rows if rows is not None else range(len(scene.requests))):
        lists = None
        if not is_dense(scene, row, layer):
            lists = step.lists(at, int(scene.plan().counts[row]))
            check_chosen(scene, row, lists)
        compare_attention(moved_to(out, at, row), None, scene.batch, row, lists, scale)


def moved_to(out: torch.Tensor, at: int, row: int) -> torch.Tensor:
    """`out` with the result of place `at` in the place of its row."""
    found = out.new_zeros(max(len(out), row + 1), *out.shape[1:])
    found[row] = out[at]
    return found


def check_summaries(scene: Scene, step: Step) -> None:
    """After `end`, every full unit of the rows has a stamp and its fields, and no other."""
    full = scene.full_units()
    want = scene.copy()
    want.seal(full)
    assert torch.equal(step.sealed.cpu(), want.sealed)
    for name, fields in step.fields.items():
        got, expected = fields.cpu().double(), want.fields[name].double()
        assert torch.equal(got.isnan(), expected.isnan())
        ulp = 2.0**-7 if ALL[name].ulps else 0
        error = (got - expected).abs().nan_to_num(0)
        assert (error <= ulp * expected.abs().nan_to_num(0) + 1e-6 * (ulp > 0)).all()


@pytest.mark.parametrize("requests,shape,reduction", [
    (MIXED, (2, 4, 128, torch.bfloat16, 16, 64), Reduction.MAX_SOFTMAX),
    (MIXED, (1, 7, 64, torch.float16, 32, 32), Reduction.MEAN_SOFTMAX),
    (FEW, (8, 1, 96, torch.bfloat16, 16, 16), Reduction.MEAN_SOFTMAX),
])  # fmt: skip
def test_a_step_of_two_layers(requests: list[Request], shape: tuple, reduction: Reduction) -> None:
    """Some units have stamps; the first layer fills the fields of the others."""
    scene = make_scene(requests, *shape, reduction=reduction)
    full = scene.full_units()
    scene.seal(full[torch.rand(len(full)) < 0.5])
    step = Step.of(scene)
    step.begin()
    for layer in range(2):
        check_layer(step, layer, step.decode(layer))
    assert set(step.fused.buffers.pending[: step.fused.buffers.pending_count].tolist()) == set(
        full[~scene.sealed[full]].tolist()
    )
    step.end()
    assert not step.fused.buffers.tickets.any() and not step.fused.buffers.pending_count.any()
    check_summaries(scene, step)


def test_a_missing_stamp_changes_nothing_in_the_result() -> None:
    """Scored from keys (fields NaN), from fields, or some of each: the same bits."""
    scene = make_scene(FEW, dim=96, page=32)
    full, results = scene.full_units(), []
    for share in (0.0, 0.5, 1.0):
        case = scene.copy()
        case.seal(full[: int(share * len(full))])
        step = Step.of(case)
        step.begin()
        if share == 0.0:  # the fields that later cases start from are those the kernel writes
            step.fused.summarise(case.batch.keys.to(DEVICE), step.fields)
            written = {name: tensor.cpu() for name, tensor in step.fields.items()}
            step = Step.of(case)
            step.begin()
        else:
            for name, tensor in step.fields.items():
                tensor[case.sealed] = written[name][case.sealed].to(DEVICE)
        out = step.decode(layer=1)
        lists = [step.lists(row, int(n)) for row, n in enumerate(case.plan().counts) if row != 1]
        results.append((out, *lists))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_pending_units_than_fit_are_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "PENDING_CAPACITY", 37)
    scene = make_scene([Request(900, budget=256), Request(200, "mean_std", 112)], heads=1)
    step, full = Step.of(scene), scene.full_units()
    for done in (37, len(full)):
        step.begin()
        check_layer(step, 0, step.decode())
        step.end()
        assert int(step.sealed.sum()) == done
    check_summaries(scene, step)


def test_rows_that_share_pages_list_them_twice_and_summarise_them_once() -> None:
    scene = make_scene([Request(200, budget=112), Request(200, budget=112)], heads=1)
    scene.req_to_token[scene.places[1]] = scene.req_to_token[scene.places[0]]
    scene.batch.table[1], scene.batch.q[1] = scene.batch.table[0], scene.batch.q[0]
    step = Step.of(scene)
    step.begin()
    assert int(step.fused.buffers.pending_count) == 2 * (200 // 16)
    out = step.decode()
    assert torch.equal(out[0], out[1])
    step.end()
    check_summaries(scene, step)


def share_prefix(scene: Scene, rows: list[int], tokens: int) -> None:
    """Make the first tokens of some rows those of the first of them."""
    first, unit = rows[0], scene.shape.unit_size
    for row in rows[1:]:
        place, other = scene.places[row], scene.places[first]
        scene.req_to_token[place, :tokens] = scene.req_to_token[other, :tokens]
        scene.batch.table[row, : tokens // unit] = scene.batch.table[first, : tokens // unit]


def test_rows_on_one_prefix_are_scored_from_one_table() -> None:
    """Of rows that stand together the first one's table is read, as far as they are alike; where
    their options, lengths or formulas differ, each still gets what it gets alone."""
    requests = [
        Request(1300, budget=256), Request(300, "mean_std"), Request(1250, sink=70),
        Request(1200, budget=160, window=9), Request(300, "exact"), Request(300, budget=128),
        Request(1100, budget=200, dense_layers=1),
    ]  # fmt: skip
    scene = make_scene(requests, heads=1, unit=16)
    share_prefix(scene, [0, 2, 3, 6], 1040)
    full = scene.full_units().unique()
    scene.seal(full[torch.rand(len(full)) < 0.9])
    step = Step.of(scene)
    held = step.fused.buffers
    held.order.copy_(torch.tensor([2, 0, 6, 3, 5, 1, 4]))
    step.fused.forget(step.sealed, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    step.begin()
    alike = held.shared.tolist()
    assert alike[1:4] == [65, 65, 65] and alike[5:] == [0, 0]
    for layer in range(2):
        out = step.decode(layer)
        check_layer(step, layer, out)
        logits, kept = held.logits[:, :, :, 32:64].clone(), held.table.clone()
        held.table[[0, 3, 6], 32:64] = 0  # a whole block of nobody's units: their fields are NaN
        step.score(layer)
        assert torch.equal(held.logits[:, :, :, 32:64], logits)
        held.table[2, 32:64] = 0
        step.score(layer)
        assert held.logits[[0, 3], :, :, 32:64].isnan().all(), "another table was read"
        held.table.copy_(kept)
        alone = Step.of(scene)
        for row in (0, 2, 3, 6):
            alone.begin([row])
            assert torch.equal(alone.decode(layer, [row])[0], out[row])


def test_a_row_of_many_chunks_is_chosen_as_one_of_a_single_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In layer after layer: whoever came last in one leaves its tickets for the next."""
    scene = make_scene([Request(700), Request(900, budget=112), Request(333, "position")], heads=1)
    scene.seal(scene.full_units())
    found = []
    for chunk in (2048, 16):
        for module in (fused, buffers):
            monkeypatch.setattr(module, "SELECT_CHUNK", chunk)
        step = Step.of(scene)
        step.begin()
        out = [step.decode(layer) for layer in range(2)]
        assert not step.fused.buffers.tickets.any()
        counts = scene.plan().counts.tolist()
        found.append((*out, *(step.lists(row, count) for row, count in enumerate(counts))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_stock_kernel_is_told_head_encoded_pages() -> None:
    """Selected or all units, at the plan's offsets; lists of dense rows are not written beside."""
    scene = make_scene(MORE, heads=2)
    units, counts = scene.plan().num_units.tolist(), scene.plan().counts.tolist()
    for layer in range(2):
        step = Step.of(scene)
        step.begin()
        step.fused.buffers.logical.fill_(-7)
        dense = [is_dense(scene, row, layer) for row in range(len(MORE))]
        reads = [u if d else c for u, c, d in zip(units, counts, dense, strict=True)]
        paged = Paged(scene, reads)
        step.decode(layer, paged=paged)
        for row, count in enumerate(reads):
            logical = step.fused.buffers.logical[row].cpu()
            if dense[row]:
                assert (logical == -7).all()
                logical = torch.arange(count).expand(2, -1)
            for head in range(2):
                first = int(paged.offsets[row, head])
                got = paged.pages[first : first + count].cpu()
                want = scene.batch.table[row][logical[head, :count].long()] * 16 * 2 + head
                assert torch.equal(got, want)
