"""The protocol of a device that serves whole decode steps on the GPU."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from .ops import Ops
from .routes import PagedAttend
from .types import StepShape


class FusedDecode(Protocol):
    """Decode as a GPU server runs it: static buffers, options and lengths on the device.

    Every call is asynchronous, allocates nothing and reads nothing back, so `forget`, `begin`,
    `decode` and `end` can be recorded in a CUDA graph and replayed with other contents.

    Attributes:
        shape: extents of the largest step.
        nbytes: bytes of static buffers.
        buffers: the tensors; `options` and `ratios` are written by the backend, and `masses` are
            read by it: float32 `[rows, layers, H, G]`, see `measure`.
    """

    shape: StepShape
    buffers: Any

    @property
    def nbytes(self) -> int: ...

    def formula(self, name: str) -> int:
        """Number of a formula (`SelectionMethod.formula`) in the table of options."""
        ...

    def forget(self, sealed: torch.Tensor, slots: torch.Tensor) -> None:
        """Clear the stamps of units that `slots` int64 `[n]` lie in, and of pages that start there.

        Page 0 has none.

        Every step begins so; what a step that broke off had listed is dropped too.
        """
        ...

    def arrange(self, order: torch.Tensor) -> None:
        """Say which rows stand together in the steps that follow, for reading what they share once.

        No result depends on it. A step of n rows must find a permutation of 0 .. n - 1.

        Args:
            order: int32 `[n]`, the row at each place; places behind keep theirs.
        """
        ...

    def mark(self, sampled: torch.Tensor) -> None:
        """Say which rows of the next step are measured, where `StepShape.measured` names layers.

        Args:
            sampled: int32 `[rows]`, 1 for those.
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

    def build(
        self,
        name: str,
        jobs: torch.Tensor,
        req_to_token: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        pointers: tuple[torch.Tensor, torch.Tensor],
        arrays: Mapping[str, torch.Tensor],
        skip: int,
    ) -> None:
        """Between two steps: build records of segments that have none, in all layers.

        Args:
            name: of their summary, one of `StepShape.records`.
            jobs: int32 `[n, 3]`, n at most the records there are: row of `req_to_token`, number of
                a segment that is whole in it, and room for the record that it gets.
            req_to_token: int32 `[requests, context]`.
            cache: K `[slots, H, D]` and V `[slots, H, Dv]` of one layer: the others have their
                extents and strides.
            pointers: int64 `[layers]`, addresses of K and of V of all.
            arrays: by the names of `SegmentSummary.shapes`, `[layers, records, H, ...]`.
            skip: first tokens of a sequence that no record learns from.
        """
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
        records: Mapping[str, Mapping[str, torch.Tensor]] = {},
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
            records: arrays of segment records of the layer, by name of summary.

        Returns:
            `[rows, H, G, Dv]`, valid until the next call.
        """
        ...

    def measure(self, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        """Behind `decode` of a layer: which share of their attention measured rows have read.

        It is exp(lse of what was read - lse of everything), by query head, and goes to
        `buffers.masses`. Of other rows, and where `dense_layers` has a row read everything, what is
        there stays. Not behind a `decode` that was `paged`.

        Args:
            layer: its number in the model, one of `StepShape.measured`.
            q: `[rows, H, G, D]`.
            keys: `[slots, H, D]`.
            scale: softmax scale.
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

    def step_bytes(self, shape: StepShape, watched: bool = False) -> int:
        """Bytes of the buffers that `fused` would allocate; its device does not matter."""
        ...
