"""What a sample of keys says about shares of attention: see `sgl_sparsekv.selection.sampling`."""

import math
from collections.abc import Callable

import torch

from sgl_sparsekv.types import Ranking, ScoreInputs

POWER = 1 / 3
"""Of shares: between looking where attention should be and looking everywhere alike."""
BLOCK = 64
"""Odds are summed up block by block, which is faster and more exact."""


Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`Ops.attend`."""


def sample(
    attend: Attend, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
) -> Ranking:
    """See `Ops.sample`."""
    assert inputs.known is not None
    finite = scores.nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    highest = finite.amax(-1, keepdim=True)
    odds = (POWER * (finite - highest)).exp().nan_to_num(0)  # without candidates -inf less -inf
    units, whole = systematic(odds, size)
    log_chance = (odds.gather(-1, units) / whole).log() + math.log(size)
    stands_for = unit_weights(attend, units, inputs) - log_chance[:, :, None]  # [rows, H, G, n]
    stands_for = stands_for.masked_fill(stands_for.isnan(), -torch.inf)
    known = inputs.known[..., None]
    every = torch.logaddexp(stands_for.logsumexp(-1, keepdim=True), known)
    weights = (stands_for - every).exp().nan_to_num(0).mean(2)
    mass = weights.sum(-1, keepdim=True)
    estimated = (finite - highest).exp().sum(-1, keepdim=True).log() + highest
    moved = (mass.log() - estimated).nan_to_num(0, 0, 0)
    ends = torch.cat((highest, _lowest(finite)), -1)
    drawn = finite.gather(-1, units)
    lowest = threshold(drawn, weights, ends, 1 - coverage.to(scores)[:, None])
    return Ranking(scores + moved, lowest + moved[..., 0])


def threshold(
    drawn: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor, unread: torch.Tensor
) -> torch.Tensor:
    """The score below which as much attention lies as may be left unread.

    Between two units of the sample, and from the outer ones to the ends, a line.

    Args:
        drawn: `[rows, H, n]`, scores of a sample.
        weights: shares of attention that each stands for.
        ends: `[rows, H, 2]`, highest and lowest score of all candidates.
        unread: `[rows, 1]`, share of attention.

    Returns:
        `[rows, H]`; +inf where nothing need be read, -inf where everything must.
    """
    scores, order = drawn.sort(dim=-1, descending=True, stable=True)
    weights = weights.gather(-1, order)
    mass = weights.sum(-1, keepdim=True)
    below = weights.flip(-1).cumsum(-1).flip(-1) - weights / 2  # half of a unit's own
    scores = torch.cat((ends[..., :1], scores, ends[..., 1:]), -1)
    below = torch.cat((mass, below, torch.zeros_like(mass)), -1)
    last = scores.shape[-1] - 1
    right = (below > unread[..., None]).sum(-1, keepdim=True).clamp(1, last)
    high, low = below.gather(-1, right - 1), below.gather(-1, right)
    start, stop = scores.gather(-1, right - 1), scores.gather(-1, right)
    part = ((high - unread[..., None]) / (high - low)).nan_to_num(0).clamp(0, 1)
    found = (start + part * (stop - start))[..., 0].nan_to_num(-torch.inf, torch.inf, -torch.inf)
    found = found.masked_fill(mass[..., 0] <= unread, torch.inf)
    return found.masked_fill(unread <= 0, -torch.inf)


def systematic(odds: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Units int64 `[rows, H, size]` in the middle of equal steps of the sum of `[rows, H, U]`, in
    ascending order, and that sum, float32 `[rows, H, 1]`."""
    width = odds.shape[-1]
    blocks = torch.nn.functional.pad(odds, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    whole = ends[..., -1:]
    steps = torch.arange(size, dtype=torch.float64, device=odds.device)
    points = whole * (steps + 0.5) / size
    block = torch.searchsorted(ends, points).clamp(max=ends.shape[-1] - 1)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(2, block[..., None].expand(-1, -1, -1, BLOCK))
    passed = inside.cumsum(-1, dtype=torch.float64) <= (points - before)[..., None]
    place = torch.arange(BLOCK, device=odds.device)
    last = torch.where(inside > 0, place, 0).amax(-1)  # rounding must not lead behind it
    units = block * BLOCK + passed.sum(-1).minimum(last)
    return units.clamp(max=width - 1), whole.float()


def unit_weights(attend: Attend, units: torch.Tensor, inputs: ScoreInputs) -> torch.Tensor:
    """Log-sum-exp `[rows, H, G, n]` of scaled q·k over each of some whole units `[rows, H, n]`.

    Each is attended by a row of its own, with keys for values: they are at hand.
    """
    rows, heads, size = units.shape
    table = inputs.candidates.unit_table[:, None].expand(-1, heads, -1)
    physical = table.gather(-1, units).movedim(-1, 1).reshape(rows * size, heads, 1)
    q = inputs.q.repeat_interleave(size, 0)
    ones = torch.ones(rows * size, dtype=torch.int32, device=q.device)
    where = (physical.int().contiguous(), ones, ones * inputs.unit_size)
    _, lse = attend(q, inputs.keys, inputs.keys, *where, inputs.scale, inputs.unit_size)
    return lse.unflatten(0, (rows, size)).movedim(1, -1)


def _lowest(scores: torch.Tensor) -> torch.Tensor:
    """Lowest score `[rows, H, 1]` of a candidate."""
    return scores.masked_fill(scores == -torch.inf, torch.inf).amin(-1, keepdim=True)
