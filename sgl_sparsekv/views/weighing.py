"""What queries attend to among listed tokens: all KV heads of a layer at once, on any device.

In blocks of tokens, so that memory does not grow with queries times context.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..selection.view import ViewMethod

BLOCK_BYTES = 64 << 20
"""Of the logits of a block."""


@dataclass(frozen=True)
class Queries:
    """By which tokens are weighed.

    Attributes:
        q: `[n, H, G, D]`.
        positions: int64 `[n]`.
        scale: of the softmax.
    """

    q: torch.Tensor
    positions: torch.Tensor
    scale: float


@dataclass(frozen=True)
class ListedKeys:
    """Keys that they look at.

    Attributes:
        keys: `[slots, H, D]`, the pool's K of the layer.
        slots: int64 `[H, n]`, of each listed token.
        positions: int32 `[H, n]`, ascending, -1 behind them.
    """

    keys: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


def weigh_heads(
    method: ViewMethod, queries: Queries, listed: ListedKeys, window: int, pooling: int,
    mass: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Scores of listed tokens: float32 `[H, n]`, 0 behind them.

    Args:
        method: what a share is worth.
        queries: by which they are weighed.
        listed: the tokens.
        window: first position whose score is spread over no others, nor others' over it.
        pooling: tokens over which a score is spread.
        mass: float32 `[H, n]`, gets their mean shares of attention; None: nobody asks.
    """
    scores = torch.zeros(listed.positions.shape, device=listed.positions.device)
    for part, wide, shares in _shares(queries, listed, pooling // 2):
        inner = slice(part.start - wide.start, part.stop - wide.start)
        own = shares[..., inner]
        if mass is not None:
            mass[:, part] = own.mean((1, 2))
        scores[:, part] = method.weigh(own, 1)
        if pooling > 1:
            newest = listed.positions[:, wide] >= window
            shares.masked_fill_(newest[:, None, None], 0.0)
            spread = method.weigh(shares, pooling)[:, inner]
            scores[:, part] = torch.where(newest[:, inner], scores[:, part], spread)
    return scores


def _shares(
    queries: Queries, listed: ListedKeys, beside: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Blocks of tokens, the same with `beside` neighbours, and shares float32 `[H, G, n, block]` of
    the latter."""
    heads, width = listed.positions.shape
    per_token = 4 * queries.q[:, 0, :, 0].numel() * heads
    size = max(4 * beside + 16, BLOCK_BYTES // per_token)
    parts = [slice(first, min(first + size, width)) for first in range(0, width, size)]
    whole = _logits(queries, listed, parts[0]) if len(parts) == 1 else None

    def logits(part: slice) -> torch.Tensor:
        return _logits(queries, listed, part) if whole is None else whole

    highest, total = _normalisers(logits(part) for part in parts)
    for part in parts:
        wide = slice(max(0, part.start - beside), min(width, part.stop + beside))
        shares = logits(wide).sub_(highest[..., None]).exp_().div_(total[..., None])
        yield part, wide, shares


def _logits(queries: Queries, listed: ListedKeys, part: slice) -> torch.Tensor:
    """float32 `[H, G, n, block]`, -inf for tokens that are younger than a query."""
    heads = torch.arange(len(listed.positions), device=listed.keys.device)
    keys = listed.keys[listed.slots[:, part], heads[:, None]].float()
    positions = listed.positions[:, None, part]
    hidden = (positions < 0) | (positions > queries.positions[:, None])
    q = queries.q.movedim(0, 2).float()
    logits = q.flatten(1, 2) @ keys.mT * queries.scale
    return logits.view(*q.shape[:3], -1).masked_fill_(hidden[:, None], -torch.inf)


def _normalisers(blocks: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest logit and sum of exponentials below it, float32 `[H, G, n]`; 0 and 1 of no tokens."""
    first = next(blocks)
    highest, total = _finite(first.amax(-1)), None
    total = (first - highest[..., None]).exp_().sum(-1)
    for logits in blocks:
        higher = torch.maximum(highest, _finite(logits.amax(-1)))
        total = total * (highest - higher).exp() + (logits - higher[..., None]).exp_().sum(-1)
        highest = higher
    return highest, torch.where(total > 0, total, 1.0)


def _finite(highest: torch.Tensor) -> torch.Tensor:
    return highest.masked_fill(highest.isinf(), 0.0)
