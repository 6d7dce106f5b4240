"""What the papers of views keep: scores and counts written anew, in float64."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.views import RequestView

LAYERS, HEADS, GROUP, DIM = 3, 2, 2, 16
METHODS = ("snapkv", "pyramidkv", "adakv", "h2o", "kvcompress")
BLOCK = 16
Kept = list[list[set[int]]]
"""By layer and KV head."""


@dataclass
class Attention:
    """What a model attends with.

    Attributes:
        q: `[layers, T, H, G, D]`.
        keys: `[layers, T, H, D]`.
        scale: softmax scale.
    """

    q: torch.Tensor
    keys: torch.Tensor
    scale: float = 0.25

    @property
    def layers(self) -> range:
        """Numbers of the layers."""
        return range(len(self.q))

    @property
    def heads(self) -> range:
        """Numbers of the KV heads."""
        return range(self.keys.shape[2])

    @classmethod
    def random(cls, tokens: int, seed: int) -> "Attention":
        """Heads differ in gain."""
        drawn = torch.Generator().manual_seed(seed)
        q = torch.randn(LAYERS, tokens, HEADS, GROUP, DIM, generator=drawn)
        keys = torch.randn(LAYERS, tokens, HEADS, DIM, generator=drawn)
        loud = torch.rand(LAYERS, 1, HEADS, 1, generator=drawn) * 2
        return cls(q + 0.3, keys * (0.5 + loud))

    def shares(self, layer: int, head: int, at: int, among: list[int]) -> torch.Tensor:
        """Softmax `[G, n]` of the query at a position over tokens, float64; none of later ones."""
        known = torch.tensor(among)
        logits = self.q[layer, at, head].double() @ self.keys[layer, known, head].double().T
        return (logits * self.scale).masked_fill(known > at, -torch.inf).softmax(-1)


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
        steps = [
            high - layer * (high - low) / max(len(scores) - 1, 1) for layer in range(len(scores))
        ]
        down = [int(step + 1e-9) for step in steps]
        order = sorted(range(len(scores)), key=lambda i: (down[i] - steps[i], i))
        for i in order[: len(scores) * room - sum(down)]:
            down[i] += 1
        return [[count] * len(scores[0]) for count in down]
    if method == "adakv":
        counts = []
        for layer in scores:
            every = sorted(
                ((-score, head) for head, own in enumerate(layer) for score in own)
            )[: len(scores[0]) * room]  # fmt: skip
            won = [sum(owner == head for _, owner in every) for head in range(len(scores[0]))]
            shares = [(1 - options.head_floor) * n + options.head_floor * room for n in won]
            down = [int(share + 1e-9) for share in shares]
            order = sorted(range(len(scores[0])), key=lambda i: (down[i] - shares[i], i))
            for i in order[: len(scores[0]) * room - sum(down)]:
                down[i] += 1
            there = list(map(len, layer))
            spare = sum(max(0, count - has) for count, has in zip(down, there, strict=True))
            own = [min(count, has) for count, has in zip(down, there, strict=True)]
            for i in sorted(range(len(scores[0])), key=lambda i: -won[i]):
                more = min(spare, there[i] - own[i])
                own[i], spare = own[i] + more, spare - more
            counts.append(own)
        return counts
    if method == "kvcompress":
        return blocks_given_up(scores, room, options)
    return [[room] * len(scores[0])] * len(scores)


def blocks_given_up(
    scores: list[list[list[float]]], room: int, options: RequestOptions
) -> list[list[int]]:
    """Heads give up their cheapest block, the cheapest head first, until the budget is met."""
    places = [(layer, head) for layer in range(len(scores)) for head in range(len(scores[0]))]
    left = {(layer, head): sorted(scores[layer][head]) for layer, head in places}
    always = options.sink + options.window

    def next_block(place: tuple[int, int]) -> tuple[float, tuple[int, int], int]:
        size = min((always + len(left[place])) % BLOCK or BLOCK, len(left[place]))
        return left[place][size - 1], place, size

    cheapest = [next_block(place) for place in left if left[place]]
    heapify(cheapest)
    excess = sum(map(len, left.values())) - len(scores) * len(scores[0]) * room
    while excess > 0:
        _, place, size = heappop(cheapest)
        size = min(size, excess)
        left[place] = left[place][size:]
        excess -= size
        if left[place]:
            heappush(cheapest, next_block(place))
    return [
        [len(left[layer, head]) for head in range(len(scores[0]))] for layer in range(len(scores))
    ]


def fed(view: RequestView, found: Attention, first: int, end: int) -> None:
    """Positions from `first` to `end` are run, in one step."""
    for layer in found.layers:
        view.observe(layer, found.q[layer, first:end], first)
        if view.is_due(end):
            view.weigh(layer, found.keys[layer], torch.arange(end), found.scale)
    view.settle(list(found.layers))


def kept_by(view: RequestView) -> Kept:
    """What the view lists of the tokens it was made of."""
    return [
        [
            set(positions[:count].tolist())
            for positions, count in zip(own.positions, own.counts.tolist(), strict=True)
        ]
        for own in view.layers.values()
    ]


def judge(
    method: str, found: Attention, options: RequestOptions, among: list[list[list[int]]],
    queries: range, got: Kept, carried: list[list[dict[int, float]]] | None = None,
    near: float = 0.0,
) -> list[list[dict[int, float]]]:  # fmt: skip
    """What was kept of the tokens `among` is the paper's, equal scores in either order.

    Heads that share a budget may differ by as many tokens as lie within `near` of the worst that
    is kept: float32 may order these otherwise.
    """
    length = queries.stop
    scores = []
    for layer in found.layers:
        scores.append([])
        for head in found.heads:
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
    for layer in found.layers:
        for head in found.heads:
            kept, own = got[layer][head], ranked[layer][head]
            chosen = kept - always
            assert always <= kept and chosen <= set(own)
            worst = min((own[p] for p in chosen), default=float("inf"))
            unsure = sum(abs(score - worst) < near for score in own.values())
            assert abs(len(chosen) - counts[layer][head]) <= unsure, (layer, head)
            best_left = max((s for p, s in own.items() if p not in chosen), default=0.0)
            assert worst >= best_left - 1e-6, (layer, head, worst, best_left)
    return scores


def options_of(method: str, **asked: object) -> RequestOptions:
    """Small numbers, so that a test sees all of it."""
    small: dict[str, object] = {"sink": 4, "window": 32, "observation_window": 8, "renew_every": 12}
    return RequestOptions(method=method, **{"budget": 96, **small, **asked})
