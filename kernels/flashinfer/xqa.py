"""XQA, TensorRT-LLM's decode kernel, through FlashInfer."""

import torch

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.types import AttendShape

from .buffers import BlockTable, workspace
from .layout import head_pages
from .lengths import Int64
from .limits import unsupported_anywhere

CAPABILITIES = (9, 10, 12)
"""Major compute capabilities it is built for."""
QUERY_BYTES = 16 << 10
"""A group's queries stay in this much shared memory, padded to 16 heads and a power of two."""
WORKSPACE = (8 + 32) << 20
"""8 MiB of semaphores, zero between launches, then partial results of split rows."""


class XqaRoute:
    """See `AttendRoute`."""

    name = "xqa"
    why = "needs no plan and only one launch, but gives no lse; not measured yet"

    def unsupported(self, shape: AttendShape, capability: tuple[int, int]) -> str | None:
        """See `AttendRoute.unsupported`."""
        dim = shape.head_dim
        if capability[0] not in CAPABILITIES:
            return f"attend route 'xqa' needs compute capability 9, 10 or 12, got {capability}"
        if dim % 16 or not 16 <= dim <= 512:
            return f"attend route 'xqa' needs a head_dim of 16, 32, ... 512, got {dim}"
        if shape.v_head_dim != dim:
            return f"attend route 'xqa' needs V of K's head_dim, got {shape.v_head_dim} for {dim}"
        most = QUERY_BYTES // (2 * padded(dim)) // 16 * 16
        if shape.group > most:
            return (
                f"attend route 'xqa' takes at most {most} query heads per KV head "
                f"at head_dim {dim}, got {shape.group}"
            )
        return unsupported_anywhere(self.name, "flashinfer", shape)

    def create(self, shape: AttendShape) -> "XqaAttend":
        """See `AttendRoute.create`."""
        return XqaAttend(shape)


class XqaAttend:
    """See `PagedAttend`; a block table and lengths, both read on the device; no lse."""

    def __init__(self, shape: AttendShape) -> None:
        try:
            from flashinfer.decode import xqa_batch_decode_with_kv_cache
        except ImportError as error:
            raise UnsupportedSetup(
                f"attend route 'xqa' cannot import flashinfer: {error}"
            ) from error
        self._attend = xqa_batch_decode_with_kv_cache
        self._shape = shape
        self._lists = BlockTable(shape)
        self.pages, self.offsets = self._lists.pages, self._lists.offsets
        self._workspace = workspace(shape.device, WORKSPACE)

    def plan(self, counts: Int64, tails: Int64) -> None:
        """See `PagedAttend.plan`."""
        self._lists.plan(counts, tails)

    def run(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        *,
        lse: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `PagedAttend.run`; lse is always None."""
        out = self._attend(
            q.view(-1, *q.shape[2:]),
            tuple(head_pages(pool, self._shape.unit_size) for pool in (keys, values)),
            self._workspace,
            self._lists.table,
            self._lists.lengths,
            self._shape.max_units * self._shape.unit_size,
            bmm1_scale=scale,
            bmm2_scale=1.0,
            kv_layout="NHD",
        )
        return out.view(q.shape), None


def padded(dim: int) -> int:
    """Elements of a head in shared memory."""
    return next(size for size in (64, 128, 256, 512) if dim <= size)
