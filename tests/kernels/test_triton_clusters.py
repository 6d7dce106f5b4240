"""Clusters: which are opened, how tokens of these rank, and what answers for the rest.

All as the reference has it, and the same bits for a row in any company.
"""

from dataclasses import replace

import pytest
import torch
from cases import allowed_error
from residuals import POISON, Scene, make_residual
from sgl_sparsekv.kernels.reference.clusters import Clusters
from sgl_sparsekv.kernels.triton import cluster_ops
from sgl_sparsekv.kernels.triton.launch import splits
from sgl_sparsekv.kernels.triton.spec import MIN_MAX, NOTHING, RESIDUALS
from triton_kit import REDUCTIONS, REFERENCE

from sgl_sparsekv.types import Candidates, Reduction, Selection

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
SCALE = 0.3
SCENES = [  # candidates, lengths, H, G, D, type, unit, segment, sub-vectors, reaches
    ([(16, 1237), (70, 70), (512, 1024)], [1300, 80, 1200], 2, 4, 64, torch.bfloat16, 16, 512, 4,
     [300, 9, 1]),
    ([(70, 700), (1, 63), (128, 383)], [720, 70, 400], 1, 3, 96, torch.float16, 32, 64, 3,
     [100, 5, 10**6]),
    ([(0, 380), (192, 385)], [400, 400], 1, 8, 64, torch.float32, 64, 192, 1, [40, 100]),
]  # fmt: skip


def make_scene(nth: int, reduction: Reduction = Reduction.MEAN_SOFTMAX) -> Scene:
    """Rows that choose single tokens."""
    spans, *how, reaches = SCENES[nth]
    return Scene(*make_residual(*how), spans, reaches, reduction=reduction)


def of_row(scene: Scene, row: int) -> Clusters:
    """The reference's clusters of a row."""
    return Clusters.of(scene.batch.q[row].float() * SCALE, scene.index, row, scene.spans[row])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("nth", range(len(SCENES)))
@pytest.mark.parametrize("most", (4096, 32))
def test_the_best_clusters_are_opened(
    nth: int, reduction: Reduction, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, candidates and masks; nothing is written for segments without a record."""
    monkeypatch.setattr(cluster_ops, "MOST_OPENED", most)
    scene = make_scene(nth, reduction)
    scene.open(SCALE)
    held, size = scene.held, scene.index.segment_size
    for row, (begin, end) in enumerate(scene.spans):
        logits, counts = held.logits[row].cpu(), held.counts[row].cpu()
        there = torch.zeros(logits.shape[-1], dtype=torch.bool)
        if begin < end:
            want = of_row(scene, row)
            there[want.places] = True
            exact = [
                scene.batch.q[row].double() @ scene.index.cluster_keys(record).double().mT * SCALE
                for segment, record in enumerate(scene.index.table[row].tolist())
                if record >= 0 and segment * size < end
            ]
            if exact:
                every = torch.cat(exact, -1)
                band = allowed_error(every, want.logits, torch.float32)
                assert ((logits[..., there].double() - every).abs() <= band).all()
            assert torch.equal(counts[:, there].float(), want.sizes)
            opened = held.opened[row].cpu()[..., None] >> torch.arange(16) & 1
            opened = opened.flatten(1)[:, want.places].bool()
            assert torch.equal(opened, want.opened(reduction, scene.reaches[row]))
        assert (logits[..., ~there] == POISON % 200).all()
        assert (counts[:, ~there] == POISON % 200).all()


def test_of_equal_clusters_the_first_are_opened() -> None:
    scene = make_scene(1)
    scene.index.centroids[:] = 1
    scene.index.scales[:] = scene.index.scales.nan_to_num(0.1)[:1, :1, :1]
    scene = replace(scene, reaches=[130, 40, 200])
    scene.open(SCALE)
    for row in range(3):
        want = of_row(scene, row)
        if want.places.numel():
            opened = scene.held.opened[row].cpu()[..., None] >> torch.arange(16) & 1
            opened = opened.flatten(1)[:, want.places].bool()
            assert torch.equal(opened, want.opened(scene.reduction, scene.reaches[row]))
            assert not opened.all()


def ranked_tokens(scene: Scene, dtype: torch.dtype) -> torch.Tensor:
    """The reference's ranks `[rows, H, tokens]`, -inf where a cluster is shut."""
    batch = scene.batch
    begin, end = torch.tensor(scene.spans, dtype=torch.int32).unbind(1)
    slots = batch.table.long()[:, :, None] * batch.unit_size + torch.arange(batch.unit_size)
    candidates = Candidates(slots.flatten(1).int(), begin, end)
    how = (candidates, SCALE, scene.reduction, None, torch.tensor(scene.reaches))
    return REFERENCE.score_codes(batch.q.to(dtype), batch.keys.to(dtype), scene.index, *how)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("nth", range(len(SCENES)))
def test_tokens_of_open_clusters_have_ranks(nth: int, reduction: Reduction) -> None:
    scene = make_scene(nth, reduction)
    scene.open(SCALE)
    ranks = scene.buffers.ranks.cpu()
    want, wide = ranked_tokens(scene, torch.float32), ranked_tokens(scene, torch.float64)
    for row, (first, last) in enumerate(scene.spans):
        got, expected = ranks[row, :, first:last], want[row, :, first:last]
        assert (ranks[row, :, :first] == POISON).all() and (ranks[row, :, last:] == POISON).all()
        ranked = expected > -torch.inf
        assert torch.equal(got > -torch.inf, ranked)
        gap = (got - expected)[ranked].abs()
        assert gap.numel() == 0 or gap.max() <= 2e-5 * expected[ranked].abs().max()
    assert torch.equal(wide > -torch.inf, want > -torch.inf)


def chosen_at_random(scene: Scene) -> list[torch.Tensor]:
    """Which units of each row's own size are read, bool `[H, units]`: a fifth."""
    rng, heads = torch.Generator().manual_seed(0), scene.batch.q.shape[1]
    units = [-(-length // scene.own) for length in scene.batch.lengths]
    return [torch.rand(heads, count, generator=rng) < 0.2 for count in units]


def with_rest(scene: Scene, read: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the parts of the rest say together: out `[rows, H, G, Dv]`, lse `[rows, H, G]`."""
    heads = scene.batch.q.shape[1]
    for row, mine in enumerate(read):
        scene.held.read[row, :, : mine.shape[1]] = mine.to(scene.held.read)
    scene.open(SCALE)
    scene.rest(SCALE)
    before = splits(heads)
    out, lse = (part.cpu() for part in (scene.buffers.split_out, scene.buffers.split_lse))
    assert (out[:, :, :before] == POISON).all() and (lse[:, :, :before] == POISON).all()
    share = lse[:, :, before:] * torch.log(torch.tensor(2.0))
    joined = share.logsumexp(2)
    weight = (share - joined[:, :, None]).exp().nan_to_num(0.0)
    return (weight[..., None] * out[:, :, before:]).sum(2), joined


@pytest.mark.parametrize(("own", "formula"), [(1, RESIDUALS), (1, NOTHING), (8, MIN_MAX)])
@pytest.mark.parametrize("nth", range(len(SCENES)))
def test_clusters_answer_for_what_is_not_read(nth: int, own: int, formula: int) -> None:
    """Joined with nothing, it is the estimate alone. Rows that do not rank by these clusters read
    in segments of which nothing is open."""
    spans, *how, reaches = SCENES[nth]
    spans = [(a // own * own, b // own * own) for a, b in spans]
    reaches = [1] * len(spans) if formula == NOTHING else reaches
    scene = Scene(*make_residual(*how), spans, reaches, own, formulas=[formula] * len(spans))
    lists = chosen_at_random(scene)
    if formula == RESIDUALS:
        may = ranked_tokens(scene, torch.float32) > -torch.inf
        lists = [read & may[row, :, : read.shape[1]] for row, read in enumerate(lists)]
    out, lse = with_rest(scene, lists)
    begin, end = (x.contiguous() for x in torch.tensor(spans, dtype=torch.int32).unbind(1))
    candidates = Candidates(torch.zeros(len(spans), max(scene.batch.lengths)).int(), begin, end)
    counts = torch.zeros(len(spans), scene.batch.q.shape[1], dtype=torch.int32)
    logical = torch.zeros(*counts.shape, max(read.shape[1] for read in lists), dtype=torch.int32)
    for row, read in enumerate(lists):
        for head, mine in enumerate(read):
            found = mine.nonzero().flatten().int()
            counts[row, head], logical[row, head, : len(found)] = len(found), found
    selection = Selection(logical, logical, counts)
    how = (SCALE, scene.reduction, torch.tensor(reaches), own)
    weights = REFERENCE.weigh(scene.batch.q, scene.index, candidates, selection, *how)
    nothing = scene.batch.q.new_zeros(out.shape).float()
    known = replace(scene.index, scales=scene.index.scales.nan_to_num(0.0))
    none = torch.full(lse.shape, -torch.inf)
    want, want_lse = REFERENCE.estimate(weights, known, nothing, none)
    some = want_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, some) and some.any()
    assert (lse - want_lse)[some].abs().max() <= 1e-4
    rounded = 0.01 if scene.batch.q.dtype is torch.bfloat16 else 2e-3
    assert (out - want).abs().max() <= rounded * want.abs().max()


@pytest.mark.parametrize("nth", range(len(SCENES)))
def test_bits_do_not_depend_on_batch_or_programs(nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(nth)
    read = chosen_at_random(scene)
    out, lse = with_rest(scene, read)
    for row in range(len(scene.spans)):
        monkeypatch.setattr(cluster_ops, "score_chunks", lambda *_, row=row: 1 + row)
        alone = scene.alone(row)
        single = with_rest(alone, [read[row]])
        assert torch.equal(out[row], single[0][0]) and torch.equal(lse[row], single[1][0])
        length = scene.batch.lengths[row]
        ranks = [x.buffers.ranks.cpu() for x in (scene, alone)]
        assert torch.equal(ranks[0][row, :, :length], ranks[1][0, :, :length])


def test_other_rows_are_left_alone() -> None:
    spans, *how, _ = SCENES[2]
    batch, index = make_residual([400] * 4, *how[1:])
    four = Scene(batch, index, [spans[0]] * 4, [0, 0, 40, 40])
    plan = {"formulas": [2, 0, RESIDUALS, 2], "dense_layers": [0, 0, 2, 1]}
    for layer, opened, ranked in ((0, [], []), (1, [3], []), (2, [2, 3], [2])):
        scene = replace(four, layer=layer, estimates=[1, 1, 0, 1], **plan)
        scene.open(SCALE)
        scene.rest(SCALE)
        rested = [row for row in opened if row == 3]
        for tensor, rows in (
            (scene.held.logits, opened), (scene.held.counts, opened), (scene.held.opened, opened),
            (scene.buffers.ranks, ranked), (scene.buffers.split_lse, rested),
        ):  # fmt: skip
            untouched = POISON if tensor.is_floating_point() else POISON % 200
            untouched = POISON % 200 if tensor is scene.held.logits else untouched
            written = (tensor != untouched).flatten(1).any(1)
            assert written.nonzero().flatten().tolist() == rows
