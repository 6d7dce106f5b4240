"""How a budget of tokens is divided: over layers, over KV heads, over both. Sums are met exactly.

A *room* is what a KV head keeps beside sinks and window. Scores may lie on any device; what is
divided is, too.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch

from ..geometry import ceil_div


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


def heads_of_layers(scores: Sequence[torch.Tensor], room: int, floor: Fraction) -> torch.Tensor:
    """Room of each KV head of each layer, by how many of its layer's best scores are its own.

    Waits for the device once, whatever the number of layers.

    Args:
        scores: by layer float32 `[H, n]`, -inf for no candidates.
        room: mean over the heads of a layer.
        floor: part of `room` that every head has in any case.

    Returns:
        int64 `[layers, H]`, no head's above its candidates; the sum over a layer is `H * room` if
        it has as many.
    """
    found = torch.stack([torch.stack(_best_of_heads(layer, room)) for layer in scores])
    own = [_heads_of_a_layer(won, there, room, floor) for won, there in found.tolist()]
    return torch.tensor(own, device=found.device)


def _best_of_heads(scores: torch.Tensor, room: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of a layer's best `H * room` are each head's, and its candidates: int64 `[H]`."""
    heads, width = scores.shape
    there = scores.isfinite().sum(-1)
    best = scores.flatten().sort(descending=True, stable=True)
    values, owners = best.values[: heads * room], best.indices[: heads * room] // width
    return torch.zeros_like(there).index_add_(0, owners, values.isfinite().long()), there


def _heads_of_a_layer(won: list[int], there: list[int], room: int, floor: Fraction) -> list[int]:
    heads, total = len(won), min(len(won) * room, sum(there))
    even_share = Fraction(total, heads)
    rooms = largest_remainders([(1 - floor) * n + floor * even_share for n in won], total)
    own = [min(pair) for pair in zip(rooms, there, strict=True)]
    for head in sorted(range(heads), key=lambda h: -won[h]):  # what others have no candidates for
        own[head] += min(there[head] - own[head], total - sum(own))
    return own


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
    blocks = [
        _blocks_of_a_layer(layer, count, always, block)
        for layer, count in zip(scores, counts, strict=True)
    ]
    cost = torch.cat([costs.flatten() for costs, _ in blocks])
    size = torch.cat([sizes.flatten() for _, sizes in blocks])
    owner = torch.cat(
        [
            (torch.arange(len(sizes), device=sizes.device) + first * len(sizes)).repeat_interleave(
                sizes.shape[1]
            )
            for first, (_, sizes) in enumerate(blocks)
        ]
    )
    cheapest = cost.sort(stable=True).indices
    size = size[cheapest]
    excess = (counts.sum() - total).clamp(min=0)
    given_up = torch.minimum(size, (excess - (size.cumsum(0) - size)).clamp(min=0))
    lost = torch.zeros(counts.numel(), dtype=torch.int64, device=size.device)
    lost.index_add_(0, owner[cheapest], given_up)
    return counts - lost.view_as(counts)


def _blocks_of_a_layer(
    scores: torch.Tensor, counts: torch.Tensor, always: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost float32 and size int64 of every block of each head, `[H, blocks]`; 0 if there is none.

    Args:
        scores: float32 `[H, n]`, -inf for no candidates.
        counts: int64 `[H]`, candidates.
    """
    width = scores.shape[1]
    ascending = scores.sort(-1).values  # no candidates come first
    first = (always + counts - 1) % block + 1
    nth = torch.arange(ceil_div(width, block) + 1, device=scores.device)
    ends = (first[:, None] + nth * block).minimum(counts[:, None])
    last = width - counts[:, None] + ends - 1
    return ascending.gather(1, last), ends.diff(prepend=torch.zeros_like(ends[:, :1]))
