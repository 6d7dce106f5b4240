"""Every method keeps what its paper keeps, on random attention."""

import pytest
import torch

from sgl_sparsekv.views import RequestView

from .paper import (
    BLOCK,
    DIM,
    GROUP,
    HEADS,
    LAYERS,
    METHODS,
    Attention,
    fed,
    judge,
    kept_by,
    options_of,
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [97, 130, 311])
@pytest.mark.parametrize("pooling", [1, 7])
def test_a_prompt_is_narrowed_as_the_paper_does(method: str, length: int, pooling: int) -> None:
    options = options_of(method, pooling=pooling)
    found = Attention.random(length, seed=length)
    view = RequestView.of(options, length, BLOCK)
    assert view is not None
    fed(view, found, 0, length)
    assert view.made == length
    everything = [[list(range(length))] * HEADS] * LAYERS
    judge(method, found, options, everything, range(length - 8, length), kept_by(view))


@pytest.mark.parametrize("method", METHODS)
def test_a_view_is_renewed_among_what_it_kept_and_what_came(method: str) -> None:
    """Three times; scores that accumulate go on from the last view's."""
    prompt, every = 150, 12
    options = options_of(method, renew_every=every)
    found = Attention.random(prompt + 3 * every, seed=3)
    view = RequestView.of(options, prompt, BLOCK)
    assert view is not None
    fed(view, found, 0, prompt)
    among = [[list(range(prompt))] * HEADS] * LAYERS
    scores = judge(method, found, options, among, range(prompt - 8, prompt), kept_by(view))
    for end in range(prompt + every, prompt + 3 * every + 1, every):
        before = kept_by(view)
        for now in range(end - every, end):
            fed(view, found, now, now + 1)
        assert view.made == end
        new = list(range(end - every, end))
        among = [[sorted(own) + new for own in heads] for heads in before]
        accumulates = method in ("h2o", "kvcompress")
        carried = [
            [{p: scores[i][j][p] for p in before[i][j]} for j in range(HEADS)]
            for i in range(LAYERS)
        ]
        seen = range(end - (every if accumulates else 8), end)
        scores = judge(
            method, found, options, among, seen, kept_by(view), carried if accumulates else None
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [64, 100, 333, 1024, 2048])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_budget_is_met_exactly(method: str, budget: int, layers: int) -> None:
    """Over all layers and heads; per head where the method gives every head as much."""
    length = 2300
    options = options_of(method, budget=budget, window=16)
    drawn = torch.Generator().manual_seed(budget)
    view = RequestView.of(options, length, BLOCK)
    assert view is not None
    for layer in range(layers):
        view.observe(layer, torch.randn(8, HEADS, GROUP, DIM, generator=drawn), length - 8)
        keys = torch.randn(length, HEADS, DIM, generator=drawn) * (layer + 1)
        view.weigh(layer, keys, torch.arange(length), 0.25)
    view.settle(list(range(layers)))
    counts = torch.stack([view.layers[layer].counts for layer in range(layers)])
    assert int(counts.sum()) == layers * HEADS * budget
    if method in ("snapkv", "h2o"):
        assert counts.unique().tolist() == [budget]
    if method == "adakv":
        assert counts.sum(1).unique().tolist() == [HEADS * budget]
