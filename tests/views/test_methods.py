"""Every method keeps what its paper keeps: scores and counts written anew, in float64."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import pytest
import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.views import RequestView

LAYERS, HEADS, GROUP, DIM, SCALE = 3, 2, 2, 16, 0.25
METHODS = ("snapkv", "pyramidkv", "adakv", "h2o", "kvcompress")
BLOCK = 16
Kept = list[list[set[int]]]
"""By layer and KV head."""


@dataclass
class Attention:
    """Random queries `[layers, T, H, G, D]` and keys `[layers, T, H, D]`; heads differ in gain."""

    q: torch.Tensor
    keys: torch.Tensor

    @classmethod
    def random(cls, tokens: int, seed: int) -> "Attention":
        drawn = torch.Generator().manual_seed(seed)
        q = torch.randn(LAYERS, tokens, HEADS, GROUP, DIM, generator=drawn)
        keys = torch.randn(LAYERS, tokens, HEADS, DIM, generator=drawn)
        loud = torch.rand(LAYERS, 1, HEADS, 1, generator=drawn) * 2
        return cls(q + 0.3, keys * (0.5 + loud))

    def shares(self, layer: int, head: int, at: int, among: list[int]) -> torch.Tensor:
        """Softmax `[G, n]` of the query at a position over tokens, float64; none of later ones."""
        known = torch.tensor(among)
        logits = self.q[layer, at, head].double() @ self.keys[layer, known, head].double().T
        return (logits * SCALE).masked_fill(known > at, -torch.inf).softmax(-1)


def pooled(scores: torch.Tensor, size: int) -> torch.Tensor:
    """The largest of `size` neighbours of each."""
    reach = size // 2
    near = [
        scores[..., max(0, i - reach) : i + reach + 1].amax(-1) for i in range(scores.shape[-1])
    ]
    return torch.stack(near, -1)


def paper_scores(
    method: str, found: Attention, place: tuple[int, int], among: list[int],
    options: RequestOptions, queries: range, first: bool,
) -> dict[int, float]:  # fmt: skip
    """Scores of tokens in front of the window."""
    squared = method == "kvcompress"
    shares = torch.stack([found.shares(*place, at, among) for at in queries])
    per_head = (shares.square() if squared else shares).sum(0)  # [G, n]
    old = sum(p < queries.stop - options.window for p in among)
    ranked = per_head[:, :old]
    spread = method != "h2o" and (first or not squared)
    if squared:
        scores = (pooled(ranked, options.pooling) if spread else ranked).sum(0)
    else:
        mean = ranked.mean(0)
        scores = pooled(mean, options.pooling) if spread else mean
    rest = per_head[:, old:].sum(0) if squared else per_head[:, old:].mean(0)
    return dict(zip(among, [*scores.tolist(), *rest.tolist()], strict=True))


def paper_counts(
    method: str, scores: list[list[list[float]]], room: int, options: RequestOptions
) -> list[list[int]]:
    """Candidates that each head of each layer keeps."""
    if method == "pyramidkv":
        low = room / options.pyramid_beta
        high = 2 * room - low
        most = len(scores[0][0])
        if high > most:
            high, low = most, 2 * room - most
        steps = [high - layer * (high - low) / (LAYERS - 1) for layer in range(LAYERS)]
        down = [int(step + 1e-9) for step in steps]
        order = sorted(range(LAYERS), key=lambda i: (down[i] - steps[i], i))
        for i in order[: LAYERS * room - sum(down)]:
            down[i] += 1
        return [[count] * HEADS for count in down]
    if method == "adakv":
        counts = []
        for layer in scores:
            every = sorted(
                ((-score, head) for head, own in enumerate(layer) for score in own)
            )[: HEADS * room]  # fmt: skip
            won = [sum(owner == head for _, owner in every) for head in range(HEADS)]
            shares = [(1 - options.head_floor) * n + options.head_floor * room for n in won]
            down = [int(share + 1e-9) for share in shares]
            order = sorted(range(HEADS), key=lambda i: (down[i] - shares[i], i))
            for i in order[: HEADS * room - sum(down)]:
                down[i] += 1
            there = list(map(len, layer))
            spare = sum(max(0, count - has) for count, has in zip(down, there, strict=True))
            own = [min(count, has) for count, has in zip(down, there, strict=True)]
            for i in sorted(range(HEADS), key=lambda i: -won[i]):
                more = min(spare, there[i] - own[i])
                own[i], spare = own[i] + more, spare - more
            counts.append(own)
        return counts
    if method == "kvcompress":
        return blocks_given_up(scores, room, options)
    return [[room] * HEADS] * LAYERS


def blocks_given_up(
    scores: list[list[list[float]]], room: int, options: RequestOptions
) -> list[list[int]]:
    """Heads give up their cheapest block, the cheapest head first, until the budget is met."""
    places = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    left = {(layer, head): sorted(scores[layer][head]) for layer, head in places}
    always = options.sink + options.window

    def next_block(place: tuple[int, int]) -> tuple[float, tuple[int, int], int]:
        size = min((always + len(left[place])) % BLOCK or BLOCK, len(left[place]))
        return left[place][size - 1], place, size

    cheapest = [next_block(place) for place in left if left[place]]
    heapify(cheapest)
    excess = sum(map(len, left.values())) - LAYERS * HEADS * room
    while excess > 0:
        _, place, size = heappop(cheapest)
        size = min(size, excess)
        left[place] = left[place][size:]
        excess -= size
        if left[place]:
            heappush(cheapest, next_block(place))
    return [[len(left[layer, head]) for head in range(HEADS)] for layer in range(LAYERS)]


def fed(view: RequestView, found: Attention, first: int, end: int) -> None:
    """Positions from `first` to `end` are run, in one step."""
    for layer in range(LAYERS):
        view.observe(layer, found.q[layer, first:end], first)
        if view.is_due(end):
            view.weigh(layer, found.keys[layer], torch.arange(end), SCALE)
    view.settle(list(range(LAYERS)))


def kept_by(view: RequestView) -> Kept:
    """What the view lists of the tokens it was made of."""
    return [
        [
            set(positions[:count].tolist())
            for positions, count in zip(own.positions, own.counts.tolist(), strict=True)
        ]
        for own in (view.layers[layer] for layer in range(LAYERS))
    ]


def judge(
    method: str, found: Attention, options: RequestOptions, among: list[list[list[int]]],
    queries: range, got: Kept, carried: list[list[dict[int, float]]] | None = None,
) -> list[list[dict[int, float]]]:  # fmt: skip
    """What was kept of the tokens `among` is the paper's, equal scores in either order."""
    length = queries.stop
    scores = []
    for layer in range(LAYERS):
        scores.append([])
        for head in range(HEADS):
            own = paper_scores(
                method, found, (layer, head), among[layer][head], options, queries, carried is None
            )
            for position, before in (carried[layer][head] if carried else {}).items():
                own[position] += before
            scores[layer].append(own)
    always = {*range(options.sink), *range(length - options.window, length)}
    ranked = [
        [{p: s for p, s in own.items() if p not in always} for own in heads] for heads in scores
    ]
    room = options.budget_tokens(length) - options.sink - options.window
    counts = paper_counts(method, [[list(o.values()) for o in h] for h in ranked], room, options)
    for layer in range(LAYERS):
        for head in range(HEADS):
            kept, own = got[layer][head], ranked[layer][head]
            chosen = kept - always
            assert always <= kept and chosen <= set(own)
            assert len(chosen) == counts[layer][head], (layer, head)
            worst = min((own[p] for p in chosen), default=float("inf"))
            best_left = max((s for p, s in own.items() if p not in chosen), default=0.0)
            assert worst >= best_left - 1e-6, (layer, head, worst, best_left)
    return scores


def options_of(method: str, **asked: object) -> RequestOptions:
    """Small numbers, so that a test sees all of it."""
    small: dict[str, object] = {"sink": 4, "window": 32, "observation_window": 8, "renew_every": 12}
    return RequestOptions(method=method, **{"budget": 96, **small, **asked})


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
        view.weigh(layer, keys, torch.arange(length), SCALE)
    view.settle(list(range(layers)))
    counts = torch.stack([view.layers[layer].counts for layer in range(layers)])
    assert int(counts.sum()) == layers * HEADS * budget
    if method in ("snapkv", "h2o"):
        assert counts.unique().tolist() == [budget]
    if method == "adakv":
        assert counts.sum(1).unique().tolist() == [HEADS * budget]
