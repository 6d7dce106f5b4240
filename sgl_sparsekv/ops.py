"""The device protocol: what a `kernels/<device>` folder provides, and how it is found."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .types import AttendShape, Candidates, PageSummary, Reduction, Selection, StepShape

DEVICES = {
    "reference": "sgl_sparsekv.kernels.reference",
    "cpu": "sgl_sparsekv.kernels.cpu",
    "triton": "sgl_sparsekv.kernels.triton",
}
"""Device name -> module with a `load() -> Ops`, imported on use."""
ROUTES = {
    "fa2": "sgl_sparsekv.kernels.flashinfer",
    "fa3": "sgl_sparsekv.kernels.flashinfer",
    "xqa": "sgl_sparsekv.kernels.flashinfer",
}
"""Route name -> module with a `load(name) -> AttendRoute`, imported on use."""


class Ops(Protocol):
    """Work of one decode layer, in order; shapes are defined in `sgl_sparsekv.types`.

    Results depend on the row alone: the same row gives the same bits in any batch and with any
    number of threads.
    """

    name: str

    def summaries(self) -> frozenset[str] | None:
        """Names of the page summaries this device has kernels for; None means any."""
        ...

    def summarise(
        self, summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor, units: torch.Tensor
    ) -> None:
        """Write `fields[units]` from the pool's keys.

        Args:
            summary: what to compute.
            keys: `[slots, H, D]`, the pool's K.
            fields: `[pool units, H, planes, D]`, written at `units`.
            units: int64 `[m]`, full physical units.
        """
        ...

    def score(
        self,
        summary: PageSummary,
        q: torch.Tensor,
        fields: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
    ) -> torch.Tensor:
        """Score candidate units from their metadata.

        Returns:
            float32 `[rows, H, U]`: log of the reduced softmax over each row's candidates; -inf
            outside `[begin, end)`. Metadata outside the candidates is never read.
        """
        ...

    def score_exact(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        unit_size: int,
    ) -> torch.Tensor:
        """Score candidate units by their true share of attention (reads every key).

        Returns:
            As `score`, with the unit's log-sum-exp of scaled q·k in place of an estimate.
        """
        ...

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """Keep sinks, window and the best candidates; equal scores go to the lower unit.

        Args:
            scores: float32 `[rows, H, U]`.
            candidates: units before `begin` and from `end` on are always kept.
            num_units: int32 `[rows]`, units of the sequence, the partial tail included.
            counts: int32 `[rows]`, units to keep: sinks + window + ranked, at most `num_units`.
        """
        ...

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: torch.Tensor,
        counts: torch.Tensor,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode attention over listed units; each K and V row is read once for its G queries.

        Args:
            q: `[rows, H, G, D]`.
            keys: `[slots, H, D]`, the pool's K.
            values: `[slots, H, Dv]`, the pool's V.
            table: int32 `[rows, H, n]`, physical units; a head stride of 0 (one list for all
                heads) is allowed.
            counts: int32 `[rows]`, listed units of each row, at least 1.
            tail_lengths: int32 `[rows]`, tokens of the last listed unit that exist (1..unit_size).
            scale: softmax scale.
            unit_size: tokens per unit.

        Returns:
            out `[rows, H, G, Dv]` in q's dtype and lse float32 `[rows, H, G]` (natural log).
        """
        ...

    def merge(
        self, out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join two attention states `[..., Dv]`, `[...]` over disjoint keys."""
        ...


class PrefillOps(Ops, Protocol):
    """A device whose prefill is ours too; elsewhere SGLang's dense backend runs it."""

    def prefill(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Causal attention of the newest T tokens of one request; cost T x L.

        Args:
            q: `[T, H * G, D]`, queries of positions L - T .. L - 1.
            keys: `[slots, H, D]`, the pool's K, the T new rows included.
            values: `[slots, H, Dv]`.
            slots: int64 `[L]`, slot of each position.
            scale: softmax scale.

        Returns:
            `[T, H * G, Dv]` in q's dtype.
        """
        ...


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


class FusedDecode(Protocol):
    """Decode as a GPU server runs it: static buffers, options and lengths on the device.

    Every call is asynchronous, allocates nothing and reads nothing back, so `forget`, `begin`,
    `decode` and `end` can be recorded in a CUDA graph and replayed with other contents.

    Attributes:
        nbytes: bytes of static buffers.
        buffers: the tensors; `options` and `ratios` are written by the backend.
    """

    buffers: Any

    @property
    def nbytes(self) -> int: ...

    def formula(self, name: str) -> int:
        """Number of a formula (`SelectionMethod.formula`) in the table of options."""
        ...

    def forget(self, sealed: torch.Tensor, slots: torch.Tensor) -> None:
        """Clear the stamps of pages whose first slot is among `slots` int64 `[n]`; not page 0.

        Every step begins so; what a step that broke off had listed is dropped too.
        """
        ...

    def begin(
        self,
        sealed: torch.Tensor,
        request_rows: torch.Tensor,
        lengths: torch.Tensor,
        req_to_token: torch.Tensor,
    ) -> None:
        """Plan every row and list the full units without a stamp.

        Args:
            sealed: bool `[pool units]`.
            request_rows: int `[rows]`, rows of `req_to_token` and of the table of options.
            lengths: int `[rows]`, tokens, the current one included.
            req_to_token: int32 `[requests, context]`.
        """
        ...

    def summarise(self, keys: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> None:
        """Write this layer's fields of the listed units, where no `decode` follows (prefill)."""
        ...

    def decode(
        self,
        sealed: torch.Tensor,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        scale: float,
        paged: PagedAttend | None = None,
    ) -> torch.Tensor:
        """One layer: score and summarise, select, attend.

        Args:
            sealed: bool `[pool units]`; a unit without a stamp is scored from its keys.
            layer: counted from this rank's first.
            q: `[rows, H, G, D]`.
            keys: `[slots, H, D]`.
            values: `[slots, H, Dv]`.
            fields: `[pool units, H, planes, D]` by name of summary.
            scale: softmax scale.
            paged: reads the selection through a stock kernel; None: by this device's own.

        Returns:
            `[rows, H, G, Dv]`, valid until the next call.
        """
        ...

    def end(self, sealed: torch.Tensor) -> None:
        """Behind the last layer: stamp the listed units."""
        ...


class FusedOps(Ops, Protocol):
    """A device that serves whole decode steps on the GPU."""

    def fused(self, shape: StepShape, watched: bool = False) -> FusedDecode:
        """Allocate the buffers of a server's steps; `watched` keeps logical units as well.

        Raises:
            UnsupportedSetup: a head size, element type or context has no kernel.
        """
        ...


def load_ops(device: str) -> Ops:
    """Load the ops of a device.

    Raises:
        ValueError: the device is unknown.
        UnsupportedSetup: its kernels were not built, or cannot run on this machine.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {sorted(DEVICES)}, got {device!r}")
    ops: Ops = import_module(DEVICES[device]).load()
    return ops


def load_route(name: str) -> AttendRoute:
    """Load a route of `attend` through a stock kernel.

    Raises:
        ValueError: the route is unknown.
    """
    if name not in ROUTES:
        raise ValueError(f"route must be one of {sorted(ROUTES)}, got {name!r}")
    route: AttendRoute = import_module(ROUTES[name]).load(name)
    return route
