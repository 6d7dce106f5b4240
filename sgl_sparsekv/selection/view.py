"""What a method that narrows a request's view is.

Such a method keeps tokens once, when the prompt is read, by what its last queries attend to, and
again every `renew_every` tokens of the answer. Nothing is evicted: rows, pages and tree stay as
they are, and other requests see all of them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

import torch
from torch.nn.functional import max_pool1d

from ..ops import Ops
from ..types import ScoreInputs
from .apportion import even
from .base import SelectionMethod
from .policy import Budgeted


class Viewed(Budgeted, Protocol):
    """What of a request's options its view asks for: `sgl_sparsekv.config.RequestOptions`."""

    @property
    def observation_window(self) -> int:
        """Last queries by which tokens are kept."""

    @property
    def pooling(self) -> int:
        """Tokens over which a score is spread, the largest counting; odd, 1: not at all."""

    @property
    def renew_every(self) -> int:
        """Tokens of the answer after which a view is made anew; 0: never."""

    @property
    def pyramid_beta(self) -> int:
        """How steeply `pyramidkv` falls."""

    @property
    def head_floor(self) -> float:
        """Part of its even share that a KV head keeps in `adakv`."""

    @property
    def kept_map(self) -> bool:
        """Whether the response tells which tokens were kept."""


@dataclass(frozen=True)
class Room:
    """What there is to divide.

    Attributes:
        tokens: what a KV head keeps beside sinks and window, on the mean.
        always: sinks and window.
        layers: places of this stage's layers among those of all stages that have views.
        num_layers: such layers of all stages.
        block: tokens of a block, where whole blocks are given up.
        options: of the request.
    """

    tokens: int
    always: int
    layers: Sequence[int]
    num_layers: int
    block: int
    options: Viewed


class ViewMethod(SelectionMethod):
    """Keeps tokens by what a window of queries attended to.

    Attributes:
        accumulates: scores go on from those of the last view: what was attended to counts for ever.
    """

    unit_size = 1
    formula = "nothing"
    narrows = True
    accumulates: ClassVar[bool] = False

    @abstractmethod
    def weigh(self, shares: torch.Tensor, pooling: int) -> torch.Tensor:
        """Scores of the tokens of one KV head, or of several; higher is kept.

        A token's score depends on the shares of its `pooling` neighbours and on no others.

        Args:
            shares: float32 `[..., G, n, T]`, softmax of n queries over T tokens in ascending order.
            pooling: see `Viewed`.

        Returns:
            float32 `[..., T]`, not negative.
        """

    def divide(self, scores: Sequence[torch.Tensor], room: Room) -> torch.Tensor:
        """How many of its candidates every KV head keeps.

        Args:
            scores: by layer float32 `[H, n]`, -inf for no candidates.
            room: what there is.

        Returns:
            int64 `[layers, H]`.
        """
        return even(torch.stack([layer.isfinite().sum(-1) for layer in scores]), room.tokens)

    def score(self, ops: Ops, inputs: ScoreInputs) -> NoReturn:
        """Never needed: a view is read, not scored."""
        raise AssertionError(f"{self.name} keeps a view and is never scored")


def spread(scores: torch.Tensor, pooling: int) -> torch.Tensor:
    """The largest of `pooling` neighbours, itself in their middle: `[..., T]`."""
    flat = scores.reshape(-1, scores.shape[-1])
    return max_pool1d(flat, pooling, 1, pooling // 2).view_as(scores)
