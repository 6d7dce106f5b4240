"""FlashInfer's paged batch decode on tensor cores (its `fa2` backend)."""

import math

import torch

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.types import AttendShape

from .buffers import HostNumbers, multiprocessors, shared_pages, workspace
from .layout import head_pages
from .lengths import Int64, check_plan, write_indptr, write_tails
from .limits import unsupported_anywhere

HEAD_DIMS = (64, 128, 256)
"""Head dims it is built for; its loads move 64 elements at a time, so 96 would be cut."""
SHARED_WORKSPACE = 128 << 20
"""Bytes for partial results of split rows, shared by all shapes that fit in it."""


class Fa2Route:
    """See `AttendRoute`."""

    name = "fa2"
    why = "runs on every GPU from SM80 on and gives lse; not measured yet"

    def unsupported(self, shape: AttendShape, capability: tuple[int, int]) -> str | None:
        """See `AttendRoute.unsupported`."""
        if capability < (8, 0):
            return f"attend route 'fa2' needs compute capability 8.0 or later, got {capability}"
        if shape.head_dim not in HEAD_DIMS:
            return f"attend route 'fa2' needs a head_dim of {HEAD_DIMS}, got {shape.head_dim}"
        if shape.v_head_dim != shape.head_dim:
            return (
                "attend route 'fa2' needs V of K's head_dim, "
                f"got {shape.v_head_dim} for {shape.head_dim}"
            )
        return unsupported_anywhere(self.name, "flashinfer", shape)

    def create(self, shape: AttendShape) -> "Fa2Attend":
        """See `AttendRoute.create`."""
        return Fa2Attend(shape)


class Fa2Attend:
    """See `PagedAttend`; a ragged page list, planned on the host.

    FlashInfer's kernel counts its chunks from the lengths on the device and its planner from those
    on the host: they must be the same numbers, so both come from one array here.
    """

    def __init__(self, shape: AttendShape) -> None:
        try:
            from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper
        except ImportError as error:
            raise UnsupportedSetup(
                f"attend route 'fa2' cannot import flashinfer: {error}"
            ) from error
        requests = shape.rows * shape.heads
        like = {"dtype": torch.int32, "device": shape.device}
        self._shape = shape
        self.pages = shared_pages(shape.device, requests * shape.max_units)
        self._indptr = torch.zeros(requests + 1, **like)
        self.offsets = self._indptr[:-1].view(shape.rows, shape.heads)
        self._starts = HostNumbers(requests + 1, shape.device)
        self._tails = HostNumbers(requests, shape.device)
        partials, tables = workspace_sizes(shape, multiprocessors(shape.device))
        floats = workspace(shape.device, max(SHARED_WORKSPACE, partials))
        self._wrapper = BatchDecodeWithPagedKVCacheWrapper(
            floats,
            "NHD",
            use_cuda_graph=shape.graph,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=self._indptr if shape.graph else None,
            paged_kv_indices_buffer=self.pages if shape.graph else None,
            paged_kv_last_page_len_buffer=torch.ones(requests, **like) if shape.graph else None,
            backend="fa2",
        )
        ints = torch.zeros(tables, dtype=torch.uint8, device=shape.device)
        self._wrapper.reset_workspace_buffer(floats, ints)

    def plan(self, counts: Int64, tails: Int64) -> None:
        """See `PagedAttend.plan`.

        Page ids are not known yet: under a graph FlashInfer is given none to copy, else it is
        given the buffer itself.
        """
        shape = self._shape
        check_plan(counts, tails, shape)
        self._starts.wait()
        write_indptr(self._starts.array, counts, shape.heads)
        write_tails(self._tails.array, tails, shape.heads)
        if not shape.graph:
            self._indptr.copy_(self._starts.tensor, non_blocking=True)
        self._wrapper.plan(
            self._starts.tensor,
            self.pages[:0] if shape.graph else self.pages,
            self._tails.tensor,
            num_qo_heads=shape.group,
            num_kv_heads=1,
            head_dim=shape.head_dim,
            page_size=shape.unit_size,
            q_data_type=shape.dtype,
            kv_data_type=shape.dtype,
            o_data_type=shape.dtype,
            sm_scale=1.0,
            non_blocking=True,
        )
        self._starts.mark_sent()

    def run(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        *,
        lse: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `PagedAttend.run`; the scale planned is 1, `q_scale` multiplies it."""
        pages = tuple(head_pages(pool, self._shape.unit_size) for pool in (keys, values))
        queries = q.view(-1, *q.shape[2:])
        if not lse:
            return self._wrapper.run(queries, pages, q_scale=scale).view(q.shape), None
        out, log2 = self._wrapper.run(queries, pages, q_scale=scale, return_lse=True)
        return out.view(q.shape), log2.view(q.shape[:3]) * math.log(2)


def workspace_sizes(shape: AttendShape, processors: int) -> tuple[int, int]:
    """What FlashInfer's planner takes at most, in bytes of (partial results, tables).

    It splits rows into at most two work items per multiprocessor or, if that is more, into one per
    query tile; an item keeps a float32 result and lse for each query head of its tile.
    """
    requests = shape.rows * shape.heads
    tile = query_tile(shape.group, shape.head_dim)
    tiles = -(-requests * shape.group // tile) + requests - 1
    items = max(2 * processors, tiles)
    partials = 4 * (items * tile + shape.group) * (shape.v_head_dim + 1)
    tables = 4 * (3 * items + 2 * (requests + 1)) + items
    return round_up(partials, 1 << 20), round_up(tables + (1 << 12), 1 << 16)


def query_tile(group: int, head_dim: int) -> int:
    """Query heads of one work item on SM80 and later, where 16 always fit with their keys."""
    if group <= 16:
        return 16
    return 128 if group > 64 and head_dim < 256 else 64


def round_up(number: int, multiple: int) -> int:
    """Smallest multiple not below a number."""
    return -(-number // multiple) * multiple
