"""What one layer of a request still reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

GROWTH = 256
"""Tokens of an answer for which a list has room before it is made longer."""


@dataclass
class LayerView:
    """Tokens that the KV heads of one layer keep, and all that came since.

    Attributes:
        made: tokens of the context when it was made.
        counts: int64 `[H]`, tokens that were kept then.
        positions: int32 `[H, n]`: these, ascending, and behind them the tokens from `made` on.
        scores: float32 `[H, n]` of the kept ones, 0 behind them.
    """

    made: int
    counts: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def of(
        cls, made: int, kept: Sequence[torch.Tensor], scores: Sequence[torch.Tensor]
    ) -> "LayerView":
        """From the kept positions of each head, int `[n]`, ascending, and their scores."""
        counts = torch.tensor([len(one) for one in kept])
        width = int(counts.max())
        positions = torch.zeros(len(kept), width, dtype=torch.int32)
        padded = torch.zeros(len(kept), width)
        for head, (own, worth) in enumerate(zip(kept, scores, strict=True)):
            positions[head, : len(own)] = own
            padded[head, : len(own)] = worth
        return cls(made, counts, _continued(positions, counts, made, width + GROWTH), padded)

    def listed(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int32 `[H, n]` that are read in a context of `length` tokens, ascending, -1
        behind them; and their number, int64 `[H]`."""
        counts = self.counts + (length - self.made)
        width = int(counts.max())
        if width > self.positions.shape[1]:
            self.positions = _continued(self.positions, self.counts, self.made, 2 * width)
        listed = self.positions[:, :width]
        if bool((counts == width).all()):
            return listed, counts
        return listed.masked_fill(torch.arange(width) >= counts[:, None], -1), counts


def _continued(
    positions: torch.Tensor, counts: torch.Tensor, made: int, width: int
) -> torch.Tensor:
    """Lists `[H, n]` of `counts` positions, and `made`, `made + 1`, ... behind: `[H, width]`."""
    place = torch.arange(width, dtype=torch.int32)
    behind = place - counts[:, None].int() + made
    behind[:, : positions.shape[1]] = torch.where(
        place[: positions.shape[1]] < counts[:, None], positions, behind[:, : positions.shape[1]]
    )
    return behind
