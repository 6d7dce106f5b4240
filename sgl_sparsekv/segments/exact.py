"""Sums and products whose bits depend on neither order, batch, threads nor library.

A row is brought to integers below 2^bits by a power of two of its own, so small that float64 holds
every partial sum: rounding happens once, before the sum, and any order of adding gives the same
bits. A row keeps 53/2 - log2(D)/2 bits (23 for D = 128) relative to its largest channel, which is
what float32 keeps.
"""

from typing import NamedTuple

import torch

MANTISSA = 53
"""Bits of a float64."""


class Grid(NamedTuple):
    """Rows as integers times a power of two.

    Attributes:
        whole: float64 `[..., n, D]`, integers.
        exponent: integer `[..., n, 1]`, or one for all rows: row = whole * 2^exponent.
    """

    whole: torch.Tensor
    exponent: torch.Tensor


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Integers of any shape, within ±1022 -> float64 2^exponent, exact."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def to_grid(rows: torch.Tensor, bits: int) -> Grid:
    """Round rows `[..., n, D]` to integers of at most 2^bits, each row by its largest channel."""
    wide = rows.double()
    exponent = torch.frexp(wide.abs().amax(-1, keepdim=True)).exponent - bits
    return Grid((wide * power_of_two(-exponent)).round(), exponent)


def product_grid(rows: torch.Tensor) -> Grid:
    """Rows `[..., n, D]` for `dot` and `squares`."""
    return to_grid(rows, (MANTISSA - (rows.shape[-1] - 1).bit_length()) // 2)


def dot(a: Grid, b: Grid) -> torch.Tensor:
    """Inner products of rows `[..., n, D]` and `[..., k, D]` -> float64 `[..., n, k]`."""
    product = a.whole @ b.whole.mT
    return product.mul_(power_of_two(a.exponent)).mul_(power_of_two(b.exponent).mT)


def squares(grid: Grid) -> torch.Tensor:
    """Squared lengths of rows `[..., n, D]` -> float64 `[..., n]`."""
    return grid.whole.square().sum(-1) * power_of_two(2 * grid.exponent[..., 0])


def directions(rows: torch.Tensor) -> torch.Tensor:
    """Rows `[..., n, D]` -> float64 rows of length one; a row of zeros stays so."""
    whole = product_grid(rows).whole
    length = whole.square().sum(-1, keepdim=True).sqrt()
    return torch.where(length > 0, whole / length, whole)


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension: `[..., n]` -> float64 `[...]`."""
    grid = to_grid(x, MANTISSA - 1 - x.shape[-1].bit_length())
    return grid.whole.sum(-1) * power_of_two(grid.exponent[..., 0])


def sum_grid(rows: torch.Tensor) -> Grid:
    """Rows `[B, n, D]` for `group_sums`: one exponent `[B, 1, 1]` for each batch entry."""
    whole, exponent = to_grid(rows.flatten(1)[:, None], MANTISSA - 1 - rows.shape[1].bit_length())
    return Grid(whole.view(rows.shape), exponent)


def group_sums(rows: Grid, labels: torch.Tensor, groups: int) -> torch.Tensor:
    """Sum rows by group, for each batch entry alone.

    Args:
        rows: `sum_grid` of `[B, n, D]`.
        labels: int64 `[B, n]`, group of each row.
        groups: C.

    Returns:
        float64 `[B, C, D]`, zero for an empty group.
    """
    batch, _, width = rows.whole.shape
    first = torch.arange(batch, device=labels.device)[:, None] * groups
    sums = rows.whole.new_zeros(batch * groups, width)
    sums.index_add_(0, (labels + first).reshape(-1), rows.whole.view(-1, width))
    return sums.view(batch, groups, width) * power_of_two(rows.exponent)


def group_counts(labels: torch.Tensor, groups: int) -> torch.Tensor:
    """Rows in each group: int64 `[B, n]` -> int64 `[B, C]`."""
    counts = labels.new_zeros(labels.shape[0], groups)
    return counts.scatter_add_(1, labels, torch.ones_like(labels))


def require_finite(name: str, rows: torch.Tensor) -> None:
    """Raise a ValueError that names the first position `[S, H, D]` holding no number."""
    bad = ~rows.isfinite().all(-1)
    if bool(bad.any()):
        token, head = torch.nonzero(bad)[0].tolist()
        value = rows[token, head][~rows[token, head].isfinite()][0].item()
        raise ValueError(f"{name} must be finite, got {value} at offset {token} of KV head {head}")
