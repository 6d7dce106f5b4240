"""All slot, unit and page arithmetic: no other module divides by a page size.

SGLang's pool is an array of slots; `page_size` consecutive slots are a page, allocated and shared
as one. Methods score smaller aligned runs, *units* of `unit_size` tokens (16 inside pages of 16,
32 or 64), so that a selection is the same whatever the page size. Because the unit divides the
page, and slot ≡ position (mod page_size), a unit of the sequence is one unit of the pool:

    physical unit = slot     // unit_size      where the unit lies in the pool
    logical unit  = position // unit_size      where it lies in the sequence

A method may select in a divisor of that unit: chunks of 8, or single tokens, whose unit is the
slot. *Segments* are longer runs, whole pages, that begin at multiples of their size in the
sequence; they lie scattered in the pool and are known by the page they end with.
"""

from dataclasses import dataclass

import torch

PAGE_SIZES = (16, 32, 64)
"""Page sizes a server may run with."""
UNIT_SIZE = 16
"""Tokens per scored unit (Quest's page)."""


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below a / b."""
    return -(-a // b)


def whole_pages(tokens: int, page_size: int) -> int:
    """Tokens of the pages that `tokens` tokens fill."""
    return tokens // page_size * page_size


def ends_a_page(tokens: int, page_size: int) -> bool:
    """Whether `tokens` tokens fill their last page."""
    return tokens % page_size == 0


@dataclass(frozen=True)
class Geometry:
    """Page and unit sizes of one pool.

    Attributes:
        page_size: slots per page, the grain of allocation and sharing.
        unit_size: tokens per unit, the grain of metadata and selection; divides `page_size`.
    """

    page_size: int
    unit_size: int = UNIT_SIZE

    def __post_init__(self) -> None:
        if self.unit_size < 1 or self.page_size % self.unit_size:
            raise ValueError(
                f"page_size must be a multiple of unit_size {self.unit_size}, got {self.page_size}"
            )

    @property
    def units_per_page(self) -> int:
        """Units in one page."""
        return self.page_size // self.unit_size

    def num_units(self, tokens: int) -> int:
        """Units that `tokens` tokens touch, the partial last one included."""
        return ceil_div(tokens, self.unit_size)

    def full_units(self, tokens: int) -> int:
        """Units that `tokens` tokens fill."""
        return tokens // self.unit_size

    def tail_length(self, tokens: int) -> int:
        """Tokens in the last unit of a sequence of `tokens` >= 1 tokens: 1..unit_size."""
        return (tokens - 1) % self.unit_size + 1

    def pool_units(self, slots: int) -> int:
        """Physical units in a pool of `slots` slots."""
        return ceil_div(slots, self.unit_size)

    def page_of(self, slots: torch.Tensor) -> torch.Tensor:
        """Page of each slot, any shape."""
        return slots // self.page_size

    def unit_of(self, slots: torch.Tensor) -> torch.Tensor:
        """Physical unit of each slot, any shape."""
        return slots // self.unit_size

    def unit_table(self, slots: torch.Tensor, unit_size: int | None = None) -> torch.Tensor:
        """Physical units of slots in position order: `[..., L]` -> `[..., ceil(L / unit)]`.

        Args:
            slots: of consecutive positions, beginning at a multiple of the unit.
            unit_size: a divisor of this geometry's unit to count in; None: that unit.
        """
        unit_size = unit_size or self.unit_size
        return slots[..., ::unit_size] // unit_size

    def finer(self, units: torch.Tensor, unit_size: int | None) -> torch.Tensor:
        """The smaller units inside units `[n]`: `[n * unit / unit_size]`; None: the same units."""
        if unit_size is None or unit_size == self.unit_size:
            return units
        parts = self.unit_size // unit_size
        offsets = torch.arange(parts, device=units.device, dtype=units.dtype)
        return (units[:, None] * parts + offsets).reshape(-1)

    def units_of_pages(self, pages: torch.Tensor) -> torch.Tensor:
        """Physical units inside pages: `[n]` -> `[n * units_per_page]`."""
        offsets = torch.arange(self.units_per_page, device=pages.device, dtype=pages.dtype)
        return (pages[:, None] * self.units_per_page + offsets).reshape(-1)

    def require_whole_pages(self, tokens: int) -> None:
        """Refuse segments that end within a page.

        Raises:
            ValueError: names both sizes.
        """
        if tokens % self.page_size:
            raise ValueError(f"a segment of {tokens} tokens is no whole pages of {self.page_size}")

    def segment_pages(self, slots: torch.Tensor, segment_size: int) -> torch.Tensor:
        """Last page of every whole segment of slots in position order: `[L]` -> `[L // size]`."""
        return slots[segment_size - 1 :: segment_size] // self.page_size

    def page_starts(self, slots: torch.Tensor) -> torch.Tensor:
        """Pages whose first slot is among `slots` `[n]`: those that start a new life."""
        return slots[slots % self.page_size == 0] // self.page_size

    def completed_units(self, slots: torch.Tensor) -> torch.Tensor:
        """Physical units whose last slot is among `slots` `[n]`: a unit fills in slot order."""
        last = self.unit_size - 1
        return slots[slots % self.unit_size == last] // self.unit_size
