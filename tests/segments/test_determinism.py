"""The same bits alone or in a batch of heads, in any order of heads, with any thread count."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from segments.data import bunches, noise

from sgl_sparsekv.segments.clusters import build_clusters, objective
from sgl_sparsekv.segments.exact import dot, group_sums, product_grid, sum_grid, total
from sgl_sparsekv.segments.landmarks import landmarks, worst_cosines
from sgl_sparsekv.segments.quantise import build_codebook, encode

TOKENS, HEADS, WIDTH = 512, 5, 32
Results = list[torch.Tensor]


def clusters(keys: torch.Tensor) -> Results:
    """Everything of the clusters, heads first."""
    index = build_clusters(keys, 16, 6, 1.5, 16)
    return [index.centroids, index.order, index.starts, objective(keys, 16, 6).T]


def codes(keys: torch.Tensor) -> Results:
    """Everything of product quantisation, heads first."""
    codebook = build_codebook(keys, 2, 5, 4)
    return [codebook.centroids, encode(keys, codebook).movedim(1, 0)]


def marks(keys: torch.Tensor) -> Results:
    """Everything of the landmarks, heads first."""
    found = landmarks(keys)
    return [found.movedim(1, 0), worst_cosines(keys, found)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same(found: Results, wanted: Results) -> None:
    """Bit for bit."""
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("core", (clusters, codes, marks))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_bits_depend_on_the_head_alone(
    core: Callable[[torch.Tensor], Results], dtype: torch.dtype
) -> None:
    """Alone, permuted, one and two threads, and from a pool's strided rows."""
    keys = bunches(TOKENS, HEADS, WIDTH, dtype)
    with threads(1):
        wanted = core(keys)
        for h in range(HEADS):
            assert_same(core(keys[:, h : h + 1]), [x[h : h + 1] for x in wanted])
        order = torch.randperm(HEADS)
        assert_same(core(keys[:, order]), [x[order] for x in wanted])
    with threads(2):
        assert_same(core(keys), wanted)


def test_sums_do_not_depend_on_their_order() -> None:
    """Terms of very unequal size in any order: the same bits, and near the true sum."""
    rows = torch.randn(200, 64) * torch.logspace(-12, 3, 200)[:, None]
    order, channels = torch.randperm(200), torch.randperm(64)
    assert torch.equal(total(rows.T), total(rows[order].T))
    torch.testing.assert_close(total(rows.T), rows.T.double().sum(-1), rtol=1e-9, atol=1e-9)
    a, b = noise(1, 7, 64)[0], rows
    inner = dot(product_grid(a), product_grid(b))
    shuffled = dot(product_grid(a[:, channels]), product_grid(b[:, channels]))
    assert torch.equal(inner, shuffled)
    exact, length = a.double() @ b.double().T, b.double().norm(dim=-1)
    assert bool(((inner - exact).abs() <= 2.0**-20 * length * a.norm(dim=-1)[:, None]).all())


def test_group_sums_do_not_depend_on_the_order_of_rows() -> None:
    """Nor on other groups' rows."""
    rows, labels = noise(2, 300, 8), torch.randint(0, 7, (2, 300))
    order = torch.randperm(300)
    wanted = group_sums(sum_grid(rows), labels, 7)
    assert torch.equal(group_sums(sum_grid(rows[:, order]), labels[:, order], 7), wanted)
    true = torch.stack([rows[labels == c].double().sum(0) for c in range(7)])
    torch.testing.assert_close(wanted.sum(0), true, rtol=1e-9, atol=1e-9)
