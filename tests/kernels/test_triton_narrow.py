"""Rows of many single tokens, chosen in three launches: what the reference chooses, in every layer.

Scores are given, in place of what `codes` leaves; buffers that need not be zero are garbage.
"""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from sgl_sparsekv.kernels.triton import buffers, fused, narrow_ops
from sgl_sparsekv.kernels.triton.narrow_ops import are_narrowed, is_narrowed
from sgl_sparsekv.kernels.triton.radix import BINS, bin_of, sortable
from triton_kit import DEVICE, REFERENCE
from triton_scene import POISON, Request, Scene, Step, make_scene

from sgl_sparsekv.segments.index import clusters
from sgl_sparsekv.types import Candidates, RecordShape

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
CHUNK = 32
"""Scores of a program here."""
REQUESTS = [
    Request(701, "clusters", 300, finer=4),
    Request(32, "clusters", 30, 0, 0, finer=4),
    Request(33, "clusters", 30, 0, 0, finer=4),
    Request(333, "position", 200),
    Request(640, "clusters", 112, 40, 50, finer=4),
    Request(500, "clusters", 440, 0, 0, dense_layers=1, finer=4),
    Request(90, "clusters", 512, finer=4),
    Request(700, "min_max", 96),
]
"""One chunk and one token more, a row by position, one that sinks and window use up, one that keeps
nearly everything, one that keeps all, and one of whole units."""


@triton.jit
def bins_kernel(scores, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, bin_of(sortable(tl.load(scores + i))))


def test_bins_are_of_the_order_of_scores() -> None:
    """Of any bits there are, of the edges of bins, and finer than 1/32 down to -8."""
    rng = torch.Generator().manual_seed(2)
    edges = -(torch.arange(4096, dtype=torch.int32) + (8 << 8)).float() / 256
    special = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 2.0**-149, -(2.0**-149), -3e38, 3e38])
    near = torch.randn(4096, generator=rng) * 5
    bits = torch.randint(-(2**31), 2**31, (8184,), generator=rng).int().view(torch.float32)
    scores = torch.cat((edges, special, near, bits))
    scores = scores[~scores.isnan()].sort().values
    scores = torch.cat((scores, torch.full((2**14 - len(scores),), torch.nan)))
    found = torch.empty(len(scores), dtype=torch.int32, device=DEVICE)
    bins_kernel[(1,)](scores.to(DEVICE), found, N=len(scores))
    found = found.cpu()
    assert (found.diff() >= 0).all() and found.min() == 0 and found.max() == BINS.value - 1
    assert (found[scores.isnan()] == BINS.value - 1).all()
    narrow = (scores[:-1] > -8) & (scores[1:] < 0) & (scores.diff() > 1 / 32)
    assert narrow.any() and (found.diff()[narrow] > 0).all()


def make_tokens(requests: list[Request], monkeypatch: pytest.MonkeyPatch, chunk: int) -> Scene:
    """A scene of a server that chooses among tokens."""
    for module in (fused, buffers, narrow_ops):
        monkeypatch.setattr(module, "SELECT_CHUNK", chunk)
    scene = make_scene(requests)
    kind = RecordShape(clusters(64, 8), 4, scene.shape.pool_units // 4)
    formulas = scene.shape.formulas | {"clusters"}
    return replace(scene, shape=replace(scene.shape, formulas=formulas, records=(kind,)))


def begun(scene: Scene, rows: list[int] | None = None) -> Step:
    """Planned; whatever a launch should write first is garbage."""
    step = Step.of(scene)
    held = step.fused.buffers
    for tensor in (held.best, held.narrow.of_chunks, held.narrow.leasts, held.ranks, held.logits):
        tensor.fill_(POISON)
    step.begin(rows)
    return step


def give(step: Step, place: int, row: int, scores: torch.Tensor) -> None:
    """Scores `[H, units]` of a row's candidates, as the launches in front of `select` leave them.

    A row of whole units gets them as logits of its only query head that counts.
    """
    plan, held = step.scene.plan(), step.fused.buffers
    inside = slice(int(plan.begin[row]), int(plan.end[row]))
    if step.scene.requests[row].formula == "clusters":
        held.ranks[place, :, inside] = scores[:, inside].to(DEVICE)
    else:
        held.logits[place, :, :, inside] = scores[:, None, inside].to(DEVICE)
        held.parts[place, :, :, 0], held.parts[place, :, :, 1] = 0.0, 0.0
        held.parts[place, :, inside.start // step.fused.tuning.score_units, 1] = 1.0


def wanted(scene: Scene, row: int, scores: torch.Tensor) -> torch.Tensor:
    """What the reference chooses: logical units `[H, count]`."""
    plan = scene.plan()
    begin, end, units, count = (
        torch.tensor([int(x[row])], dtype=torch.int32)
        for x in (plan.begin, plan.end, plan.num_units, plan.counts)
    )
    table = scene.own_units(row).table[row : row + 1, : int(units)]
    unit = torch.arange(int(units))
    inside = (unit >= begin) & (unit < end)
    given = scores[None].where(inside, torch.nan)
    return REFERENCE.select(given, Candidates(table, begin, end), units, count).logical[0]


def check(step: Step, layer: int, scores: dict[int, torch.Tensor], rows: list[int]) -> None:
    """Select in one layer, and compare every row that is ranked there."""
    scene, held = step.scene, step.fused.buffers
    for place, row in enumerate(rows):
        give(step, place, row, scores[row])
    held.logical.fill_(POISON)
    step.fused._select(layer, len(rows), None)
    for place, row in enumerate(rows):
        request, count = scene.requests[row], int(scene.plan().counts[row])
        if request.formula == "position" or layer < request.dense_layers or row == 6:
            continue
        chosen = held.logical[place, :, :count].cpu()
        assert torch.equal(chosen, wanted(scene, row, scores[row])), (layer, row)
        physical = scene.own_units(row).table[row][chosen.long()]
        assert torch.equal(held.selected[place, :, :count].cpu(), physical)
        assert (held.logical[place, :, count:] == POISON).all()
    assert not (held.tickets.any() or held.narrow.bins.any() or held.narrow.open_count.any())


def drawn(scene: Scene, kind: str, seed: int) -> dict[int, torch.Tensor]:
    """Scores of each row: logarithms of shares, few values, one value, or anything at all."""
    rng, found = torch.Generator().manual_seed(seed), {}
    for row, units in enumerate(scene.plan().num_units.tolist()):
        scores = (3 * torch.randn(2, units, generator=rng)).log_softmax(-1)
        if kind == "few values":
            scores = scores.round()
        elif kind == "equal":
            scores = torch.full_like(scores, -7.25)
        elif kind == "anything":
            bits = torch.randint(-(2**31), 2**31, scores.shape, generator=rng)
            scores = bits.int().view(torch.float32)
            scores[torch.rand(scores.shape, generator=rng) < 0.2] = torch.nan
        found[row] = scores
    return found


@pytest.mark.parametrize("kind", ["shares", "few values", "equal", "anything"])
def test_rows_of_all_lengths(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In layers in turn, and then in a batch of fewer and other rows over the same buffers."""
    scene = make_tokens(REQUESTS, monkeypatch, CHUNK)
    everyone = list(range(len(REQUESTS)))
    step = begun(scene)
    for layer in range(2):
        check(step, layer, drawn(scene, kind, layer), everyone)
    some = [4, 2, 7, 0]
    step.begin(some)
    check(step, 1, drawn(scene, kind, 9), some)


def test_a_row_is_chosen_alike_by_any_number_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_tokens(REQUESTS[:1], monkeypatch, CHUNK)
    for programs in (1, 3, 64):
        monkeypatch.setattr(narrow_ops, "score_chunks", lambda *_, n=programs: n)
        check(begun(scene), 0, drawn(scene, "few values", 3), [0])


def test_where_three_launches_choose() -> None:
    """Where one program could not hold what all chunks would keep, or where tokens are ranked."""
    assert not is_narrowed(2048, 2048) and not is_narrowed(8193, 128)
    assert is_narrowed(131_072, 2048) and is_narrowed(2049, 2048)
    shape = make_scene(REQUESTS).shape
    long = replace(shape, formulas=shape.formulas | {"clusters"}, max_units=129)
    assert are_narrowed(long) and not are_narrowed(replace(long, formulas=shape.formulas))
    assert not are_narrowed(replace(long, max_units=128))
