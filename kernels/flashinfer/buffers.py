"""Memory of the routes: numbers that go from host to device, tables, shared workspaces."""

from functools import cache

import torch

from sgl_sparsekv.types import AttendShape

from .lengths import Int32, Int64, check_plan, write_lengths


class HostNumbers:
    """int32 numbers in page-locked memory that a step copies to the device without waiting.

    The copies of a step are marked; before the next step overwrites their source it waits for the
    mark. They left as the first work of their step, so a host that runs one step ahead of the
    device finds them gone.

    Attributes:
        tensor: int32 `[n]` on the host.
        array: the same memory.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.tensor = torch.zeros(size, dtype=torch.int32, pin_memory=cuda)
        self.array: Int32 = self.tensor.numpy()
        self._sent = torch.cuda.Event() if cuda else None
        self._device = device

    def wait(self) -> None:
        """Return when what was sent last may be overwritten."""
        if self._sent is not None:
            self._sent.synchronize()

    def mark_sent(self) -> None:
        """Call after queueing every copy out of this memory."""
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))


class BlockTable:
    """Pages and lengths of kernels that take a rectangular table and need no plan.

    Attributes:
        pages: int32 `[rows * H * max_units]`.
        table: the same, `[rows * H, max_units]`; entries from a row's count on are never followed.
        offsets: int32 `[rows, H]`, constant.
        lengths: int32 `[rows * H]`, tokens, on the device.
        host: int32 `[rows * H]`, where `lengths` comes from.
    """

    def __init__(self, shape: AttendShape) -> None:
        self._shape = shape
        requests = shape.rows * shape.heads
        like = {"dtype": torch.int32, "device": shape.device}
        self.pages = shared_pages(shape.device, requests * shape.max_units)
        self.table = self.pages.view(requests, shape.max_units)
        starts = torch.arange(requests, **like) * shape.max_units
        self.offsets = starts.view(shape.rows, shape.heads)
        self.lengths = torch.ones(requests, **like)
        self.host = HostNumbers(requests, shape.device)

    def plan(self, counts: Int64, tails: Int64) -> None:
        """See `PagedAttend.plan`: queue the copy of the lengths to the device."""
        check_plan(counts, tails, self._shape)
        self.host.wait()
        write_lengths(self.host.array, counts, tails, self._shape)
        self.lengths.copy_(self.host.tensor, non_blocking=True)
        self.host.mark_sent()


_pages: dict[torch.device, torch.Tensor] = {}


def shared_pages(device: torch.device, size: int) -> torch.Tensor:
    """int32 `[size]`, the beginning of one buffer for all shapes: it is rewritten for every run.

    A table is as wide as the context, and there is one for each captured batch size and class of
    layers. A larger one replaces the buffer; who has the smaller one keeps it.
    """
    kept = _pages.get(device)
    if kept is None or len(kept) < size:
        kept = _pages[device] = torch.zeros(size, dtype=torch.int32, device=device)
    return kept[:size]


@cache
def workspace(device: torch.device, size: int) -> torch.Tensor:
    """Zeroed bytes `[size]` shared by all who ask for this size: runs follow each other."""
    return torch.zeros(size, dtype=torch.uint8, device=device)


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
