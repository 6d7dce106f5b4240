"""How a budget of tokens is divided: over layers, over KV heads, over both. Sums are met exactly.

A *room* is what a KV head keeps beside sinks and window. Everything here is integer arithmetic on
a host, once per view.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch


def largest_remainders(shares: Sequence[Fraction], total: int) -> list[int]:
    """Integers that sum to `total`, each a share rounded down, or up where most was cut off.

    Args:
        shares: not negative, their sum `total`.
        total: of the integers.
    """
    floors = [int(share) for share in shares]
    cut = sorted(range(len(shares)), key=lambda i: (floors[i] - shares[i], i))
    for i in cut[: total - sum(floors)]:
        floors[i] += 1
    return floors


def even(candidates: torch.Tensor, room: int) -> torch.Tensor:
    """The same room for every head, as far as it has candidates: int64 `[layers, H]` of both."""
    return candidates.clamp(max=room)


def pyramid(layers: int, room: int, most: int, beta: int) -> list[int]:
    """Rooms that fall from the first layer to the last by equal steps; their mean is `room`.

    Args:
        layers: number of them.
        room: mean over the layers.
        most: candidates of a head, at least `room`.
        beta: the last layer's room is `room / beta`, unless the first one's candidates are too few.
    """
    high = min(Fraction(2 * room) - Fraction(room, beta), Fraction(most))
    low = 2 * room - high
    step = (high - low) / max(layers - 1, 1)
    shares = [high - step * layer for layer in range(layers)] if layers > 1 else [Fraction(room)]
    return largest_remainders(shares, layers * room)


def heads_of_a_layer(scores: torch.Tensor, room: int, floor: Fraction) -> torch.Tensor:
    """Room of each KV head of a layer, by how many of the layer's best scores are its own.

    Args:
        scores: float32 `[H, n]`, -inf for no candidates.
        room: mean over the heads.
        floor: part of `room` that every head has in any case.

    Returns:
        int64 `[H]`, no head's above its candidates; their sum is `H * room` if there are as many.
    """
    heads, width = scores.shape
    there = scores.isfinite().sum(-1).tolist()
    total = min(heads * room, sum(there))
    best = scores.flatten().sort(descending=True, stable=True).indices[:total]
    won = torch.bincount(best // width, minlength=heads).tolist()
    even_share = Fraction(total, heads)
    rooms = largest_remainders([(1 - floor) * n + floor * even_share for n in won], total)
    own = [min(pair) for pair in zip(rooms, there, strict=True)]
    for head in sorted(range(heads), key=lambda h: -won[h]):  # what others have no candidates for
        own[head] += min(there[head] - own[head], total - sum(own))
    return torch.tensor(own)


def blocks_of_a_request(
    scores: Sequence[torch.Tensor], always: int, total: int, block: int
) -> torch.Tensor:
    """What each head of each layer keeps of `total` candidates, given up block by block.

    The cheapest block of all heads goes first. A block costs what the best of its candidates is
    worth; a head's first block holds what its last one holds beyond whole blocks. The last block
    that goes is given up in part, so that the sum is met.

    Args:
        scores: by layer float32 `[H, n]`, -inf for no candidates.
        always: tokens that every head keeps beside them.
        total: candidates that are kept, over all layers and heads.
        block: tokens of a block.

    Returns:
        int64 `[layers, H]`.
    """
    counts = torch.stack([layer.isfinite().sum(-1) for layer in scores])
    excess = max(0, int(counts.sum()) - total)
    blocks = []
    for owner, head in enumerate(head for layer in scores for head in layer):
        ascending = head[head.isfinite()].sort().values
        count = len(ascending)
        first = (always + count) % block or block
        ends = torch.arange(first, count + block, block).clamp(max=count).unique()
        sizes = ends.diff(prepend=ends.new_zeros(1))
        ends, sizes = ends[sizes > 0], sizes[sizes > 0]
        blocks.append((ascending[ends - 1], sizes, torch.full_like(sizes, owner)))
    cost, size, owner_of = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    cheapest = cost.sort(stable=True).indices
    size = size[cheapest]
    given_up = torch.minimum(size, (excess - (size.cumsum(0) - size)).clamp(min=0))
    lost = torch.zeros(counts.numel(), dtype=torch.int64)
    lost.index_add_(0, owner_of[cheapest], given_up)
    return counts - lost.view_as(counts)
