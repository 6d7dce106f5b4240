"""What one layer of a request still reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.utils.rnn import pad_sequence

from ..types import TokenLists
from .stretches import stretches_of

GROWTH = 256
"""Tokens of an answer for which a list has room before it is made longer."""


@dataclass
class LayerView:
    """Tokens that the KV heads of one layer keep, and all that came since.

    Attributes:
        made: tokens of the context when it was made.
        counts: int64 `[H]`, tokens that were kept then.
        positions: int32 `[H, n]`: these, ascending, and behind them the tokens from `made` on.
        scores: float32 `[H, n]` of the kept ones, 0 behind them, where a method goes on from them.
        places: int32 `[H, n]`, where in the row each lies; None: all at their positions.
    """

    made: int
    counts: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor | None = None
    places: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        made: int,
        kept: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor] | None = None,
        places: Sequence[torch.Tensor] | None = None,
    ) -> "LayerView":
        """From the kept positions of each head, int `[n]`, ascending, their scores and places."""
        counts = torch.tensor([len(one) for one in kept])
        width = int(counts.max()) + GROWTH

        def behind(rows: Sequence[torch.Tensor]) -> torch.Tensor:
            return _continued(pad_sequence(list(rows), batch_first=True).int(), counts, made, width)

        worth = None if scores is None else pad_sequence(list(scores), batch_first=True)
        lie = None if places is None else behind(places)
        return cls(made, counts, behind(kept), worth, lie)

    @cached_property
    def even(self) -> bool:
        """Whether every KV head keeps as many."""
        return bool((self.counts == self.counts[0]).all())

    def stretches(self) -> list[list[int]]:
        """By KV head, which of the first `made` tokens are kept; see `stretches_of`."""
        kept, counts = self.listed(self.made)
        return [
            stretches_of(own[:count], self.made)
            for own, count in zip(kept, counts.tolist(), strict=True)
        ]

    def listed(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int32 `[H, n]` that are read in a context of `length` tokens, ascending, -1
        behind them; and their number, int64 `[H]`."""
        own = self.reading(length)
        counts, width = torch.tensor(own), max(own)
        listed = self.positions[:, :width]
        if self.even:
            return listed, counts
        return listed.masked_fill(torch.arange(width) >= counts[:, None], -1), counts

    def reading(self, length: int) -> list[int]:
        """How many tokens each KV head reads in a context of `length` tokens; both lists have
        them from now on."""
        since = length - self.made
        counts = [count + since for count in self._kept]
        if max(counts) > self.positions.shape[1]:
            self._grow(2 * max(counts))
        return counts

    @cached_property
    def _kept(self) -> list[int]:
        kept: list[int] = self.counts.tolist()
        return kept

    @property
    def where(self) -> torch.Tensor:
        """int32 `[H, n]`, where in the row each of its positions lies."""
        return self.positions if self.places is None else self.places

    def lying(self, listed: torch.Tensor) -> torch.Tensor:
        """Where in the row what is `listed` lies: int32 `[H, n]`, 0 behind it."""
        places = self.where[:, : listed.shape[1]]
        return places if self.even else places.masked_fill(listed < 0, 0)

    def _grow(self, width: int) -> None:
        self.positions = _continued(self.positions, self.counts, self.made, width)
        if self.places is not None:
            self.places = _continued(self.places, self.counts, self.made, width)

    # -- packing -------------------------------------------------------------------------------

    def between(self, begin: int, end: int) -> torch.Tensor:
        """Which of its tokens have a position from `begin` to below `end`, `end` <= `made`: bool
        `[H, n]`."""
        return (self.positions >= begin) & (self.positions < end)

    def sources(self, begin: int, end: int) -> torch.Tensor:
        """Where in the row these tokens lie: int64 `[most, H]`, 0 behind them."""
        moved = zip(self.where, self.between(begin, end), strict=True)
        return pad_sequence([own[mine] for own, mine in moved]).long()

    def pack(self, begin: int, end: int) -> None:
        """From now on these tokens lie at the places `begin`, `begin + 1`, ... of the row."""
        moved = self.between(begin, end)
        together = begin + moved.cumsum(-1, dtype=torch.int32) - 1
        self.places = torch.where(moved, together, self.where)

    def unpack(self) -> None:
        """Every token lies at its position again."""
        self.places = None


def lists_of(views: Sequence[LayerView], slots: Sequence[torch.Tensor]) -> TokenLists:
    """What some rows read of one layer.

    Args:
        views: of the rows.
        slots: of each row, int32 `[L]`, slot of each place of its context.
    """
    counts = [view.reading(len(own)) for view, own in zip(views, slots, strict=True)]
    places = [view.where for view in views]
    return TokenLists([view.positions for view in views], places, slots, counts)


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
