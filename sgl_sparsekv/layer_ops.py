"""Device protocol of what is not attention: matrices, norms, gates and rotary embeddings.

A CPU serves the rest of a model by torch, which no kernel of SGLang's runs there. In a decode step,
where each layer sees a few rows, torch reads weights at a part of the speed of memory, and what
stands between the matrices costs more calls than arithmetic.
"""

from typing import Protocol

import torch

MOST_ROWS = 16
"""Rows that `LayerOps.linear` is for: of more, multiplying takes longer than reading weights."""


class LayerOps(Protocol):
    """Each rounds where the steps of torch that it stands for do, and returns new tensors.

    Rows may be strided; all tensors of a call share one dtype. Results depend on the row alone.
    """

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """x `[rows, K]` times weight `[N, K]` transposed, plus bias `[N]` -> `[rows, N]`."""
        ...

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Root-mean-square norm of x + residual, and that sum: `[rows, D]` each.

        The norm is of the sum before it is rounded. weight: `[D]`.
        """
        ...

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Root-mean-square norm of x `[rows, D]` with weight `[D]`."""
        ...

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """silu of the first half of x `[rows, 2 D]` times its second half -> `[rows, D]`."""
        ...

    def rotate(
        self, q: torch.Tensor, k: torch.Tensor, table: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary embedding by halves of heads.

        Args:
            q: `[rows, Hq, D]`.
            k: `[rows, H, D]`.
            table: `[positions, 2 R]`, cosines and then sines of R <= D / 2 angles: element i of a
                head turns with element R + i, and what is behind 2 R stays.
            positions: int64 `[rows]`, within the table.

        Returns:
            q and k, turned.
        """
        ...
