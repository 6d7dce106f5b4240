"""Reading a selection through a stock kernel: the protocol of a route, and how it is found."""

from importlib import import_module
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from .types import AttendShape

ROUTES = {
    "fa2": "sgl_sparsekv.kernels.flashinfer",
    "fa3": "sgl_sparsekv.kernels.flashinfer",
    "xqa": "sgl_sparsekv.kernels.flashinfer",
}
"""Route name -> module with a `load(name) -> AttendRoute`, imported on use."""


class PagedAttend(Protocol):
    """`attend` of one decode batch through a stock paged kernel: plan once, run every layer.

    Attributes:
        pages: int32 `[n]`, head-encoded pages, written on the device before every run: those of
            (row, head) start at `offsets[row, head]`, the unit with the newest token last.
        offsets: int32 `[rows, H]`, valid after `plan`.
    """

    pages: torch.Tensor
    offsets: torch.Tensor

    def plan(self, counts: npt.NDArray[np.int64], tails: npt.NDArray[np.int64]) -> None:
        """Host work of a step; reads nothing back from the device.

        Args:
            counts: `[rows]`, units each row reads, the same for every head, at least 1.
            tails: `[rows]`, tokens of the last of them that exist (1..unit_size).

        Raises:
            ValueError: a number is outside its range.
        """
        ...

    def run(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        *,
        lse: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend over the planned pages; recorded in a CUDA graph when the shape says so.

        Args:
            q: `[rows, H, G, D]`, contiguous.
            keys: `[slots, H, D]`, the pool's K.
            values: `[slots, H, Dv]`, the pool's V.
            scale: softmax scale.
            lse: give the log-sum-exp too, if the kernel has one.

        Returns:
            out `[rows, H, G, Dv]` in q's dtype and lse float32 `[rows, H, G]` (natural log), None
            when the kernel gives none or it was not asked for.
        """
        ...


class AttendRoute(Protocol):
    """One stock kernel that can serve `attend`.

    Attributes:
        name: value of the server option.
        why: one sentence, when it is used and on what evidence.
    """

    name: str
    why: str

    def unsupported(self, shape: AttendShape, capability: tuple[int, int]) -> str | None:
        """One sentence why it cannot serve the shape on such a GPU; None when it can."""
        ...

    def create(self, shape: AttendShape) -> PagedAttend:
        """Allocate what a shape needs.

        Raises:
            UnsupportedSetup: the package of the kernel is missing or cannot be imported.
        """
        ...


def load_route(name: str) -> AttendRoute:
    """Load a route of `attend` through a stock kernel.

    Raises:
        ValueError: the route is unknown.
    """
    if name not in ROUTES:
        raise ValueError(f"route must be one of {sorted(ROUTES)}, got {name!r}")
    route: AttendRoute = import_module(ROUTES[name]).load(name)
    return route
