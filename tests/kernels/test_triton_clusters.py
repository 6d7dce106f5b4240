"""Logits of centroids, and candidates of clusters: what the reference opens clusters by."""

from dataclasses import replace

import pytest
import torch
from cases import allowed_error
from sgl_sparsekv.kernels.reference.clusters import Clusters
from sgl_sparsekv.kernels.triton import code_ops
from sgl_sparsekv.kernels.triton.code_ops import CODED, CodePlan, look_at_clusters
from triton_kit import DEVICE, moved

from sgl_sparsekv.segment_records import ResidualIndex

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
POISON = 777
SHAPES = [  # candidates, segments, H, G, D, segment, element type
    ([(16, 1237), (512, 1024), (70, 70), (600, 601)], [2, 2, 1, 2], 2, 4, 128, 512, torch.bfloat16),
    ([(70, 700), (1, 63), (128, 383)], [10, 1, 6], 1, 3, 96, 64, torch.float16),
    ([(0, 380), (192, 385)], [2, 2], 3, 8, 64, 192, torch.float32),
]  # fmt: skip


def make_index(spans: list, counts: list[int], heads: int, dim: int, size: int) -> ResidualIndex:
    """Random clusters, some of them empty; every third segment has no record.

    What no row has is not a number.
    """
    rng = torch.Generator().manual_seed(size)
    records = sum(counts) + 2
    shape = (records, heads)
    order = torch.randperm(records, generator=rng).int()
    table = torch.full((len(counts), max(counts)), -1, dtype=torch.int32)
    scales = torch.full((*shape, 36), torch.nan)
    for row, count in enumerate(counts):
        table[row, :count] = order[sum(counts[:row]) :][:count]
        table[row, 1 + row % 2 : count : 3] = -1
        for nth, record in enumerate(table[row, :count].tolist()):
            if record >= 0 and nth * size < spans[row][1]:
                scales[record] = torch.rand(heads, 36, generator=rng) / 127
    labels = torch.randint(0, 13, (*shape, size), generator=rng)
    labels[labels == 5] = 0
    places = labels.argsort(dim=-1, stable=True)
    sizes = torch.zeros(*shape, 16).scatter_add(2, labels, torch.ones(labels.shape))
    pairs = labels.unflatten(-1, (-1, 2))
    return ResidualIndex(
        codes=torch.zeros(*shape, 2, size, dtype=torch.uint8),
        labels=(pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8),
        places=places.short(),
        ends=sizes.cumsum(-1).short(),
        centroids=torch.randint(-127, 128, (*shape, dim, 16), generator=rng).to(torch.int8),
        codebooks=torch.zeros(*shape, 4, dim // 4, 16, dtype=torch.int8),
        values=torch.zeros(*shape, 16, dim, dtype=torch.int8),
        scales=scales,
        table=table,
    )


def look(q: torch.Tensor, index: ResidualIndex, spans: list, plan: tuple = (), layer: int = 0):
    """Logits and counts over memory that is poisoned."""
    begin, end = torch.tensor(spans, dtype=torch.int32).unbind(1)
    zeros = torch.zeros_like(begin)
    usual = (zeros + CODED, begin.contiguous(), end.contiguous(), zeros)
    width = 16 * index.table.shape[1]
    logits = torch.full((*q.shape[:3], width), float(POISON), device=DEVICE)
    counts = torch.full((*q.shape[:2], width), POISON, dtype=torch.int32, device=DEVICE)
    there = ResidualIndex(**{name: moved(part, DEVICE) for name, part in vars(index).items()})
    chosen = CodePlan(*moved(plan or usual, DEVICE))
    look_at_clusters(q.to(DEVICE), there, chosen, logits, counts, 0.3, layer)
    return logits.cpu(), counts.cpu()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_candidates(shape: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits for a row alone, whoever wrote them."""
    spans, counts, heads, group, dim, size, dtype = shape
    index = make_index(spans, counts, heads, dim, size)
    rng = torch.Generator().manual_seed(1)
    q = torch.randn(len(spans), heads, group, dim, generator=rng).to(dtype)
    found = look(q, index, spans)
    for row, span in enumerate(spans):
        logits, sizes = found[0][row], found[1][row]
        there = torch.zeros(logits.shape[-1], dtype=torch.bool)
        if span[0] < span[1]:
            want = Clusters.of(q[row].float() * 0.3, index, row, span)
            there[want.places] = True
            exact = [
                q[row].double() @ index.cluster_keys(record).double().mT * 0.3
                for nth, record in enumerate(index.table[row].tolist())
                if record >= 0 and nth * size < span[1]
            ]
            if exact:
                every = torch.cat(exact, -1)
                band = allowed_error(every, want.logits, torch.float32)
                assert ((logits[..., there].double() - every).abs() <= band).all()
            assert torch.equal(sizes[:, there].float(), want.sizes)
        assert (logits[..., ~there] == POISON).all() and (sizes[:, ~there] == POISON).all()
        monkeypatch.setattr(code_ops, "score_chunks", lambda *_, row=row: 1 + row)
        one = replace(index, table=index.table[row : row + 1, : counts[row]])
        alone = look(q[row : row + 1], one, [span])
        for together, single in zip(found, alone, strict=True):
            assert torch.equal(together[row, ..., : single.shape[-1]], single[0])


def test_other_rows_are_left_alone() -> None:
    spans, counts, heads, group, dim, size, dtype = SHAPES[2]
    spans, counts = [spans[0]] * 4, [2] * 4
    index = make_index(spans, counts, heads, dim, size)
    q = torch.randn(4, heads, group, dim).to(dtype)
    begin, end = torch.tensor(spans, dtype=torch.int32).unbind(1)
    formulas = torch.tensor([2, 0, CODED, CODED], dtype=torch.int32)
    dense = torch.tensor([0, 0, 2, 1], dtype=torch.int32)
    for layer, ranked in ((0, []), (1, [3]), (2, [2, 3])):
        plan = (formulas, begin.contiguous(), end.contiguous(), dense)
        for tensor in look(q, index, spans, plan, layer):
            written = (tensor != POISON).flatten(1).any(1)
            assert written.nonzero().flatten().tolist() == ranked
