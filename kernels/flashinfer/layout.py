"""Head-encoded pages: SGLang's pool `[slots, H, D]` read per KV head by paged kernels, uncopied.

A kernel that takes strides sees one KV head and pages that overlap:

    page id = unit * unit_size * H + head           a (slot, head) row of the pool
    entry e of a page = row  page id + e * H        the same head, e slots further on

so row r starts at element r * D, and K and V share their ids whatever their head dims are.
"""

import torch

LARGEST_PAGE = 2**31 - 1
"""Page tables are int32."""


def head_pages(pool: torch.Tensor, unit_size: int) -> torch.Tensor:
    """View a pool as overlapping pages of one head each.

    Args:
        pool: contiguous `[slots, H, D]`.
        unit_size: entries of a page.

    Returns:
        `[(slots - unit_size + 1) * H, unit_size, 1, D]`, strides `(D, H * D, D, 1)`: its last
        element is the pool's last. Only ids that `encode` gives are whole units.

    Raises:
        ValueError: the pool has another shape or stride, or more rows than int32 can number.
    """
    slots, heads, dim = pool.shape
    if not pool.is_contiguous():
        raise ValueError(f"pool must be contiguous, got strides {pool.stride()}")
    if slots < unit_size:
        raise ValueError(f"pool must have at least {unit_size} slots, got {slots}")
    if slots * heads > LARGEST_PAGE:
        raise ValueError(f"pool must have at most {LARGEST_PAGE} rows, got {slots * heads}")
    pages = (slots - unit_size + 1) * heads
    return pool.as_strided((pages, unit_size, 1, dim), (dim, heads * dim, dim, 1))


def encode(units: torch.Tensor, heads: int, unit_size: int) -> torch.Tensor:
    """Page ids of physical units: what a selection writes into `PagedAttend.pages`.

    Args:
        units: int32 or int64 `[..., H, n]`, or `[..., 1, n]` for one list shared by all heads.
        heads: KV heads of the pool, H.
        unit_size: tokens per unit.

    Returns:
        int32 `[..., H, n]`.
    """
    head = torch.arange(heads, dtype=torch.int32, device=units.device)[:, None]
    return (units.int() * (unit_size * heads) + head).int()
