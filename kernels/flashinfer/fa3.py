"""FlashAttention 3 as SGLang ships it (`sgl_kernel`), called the way SGLang's backend calls it."""

import torch

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.types import AttendShape

from .buffers import BlockTable
from .layout import head_pages
from .lengths import Int64
from .limits import unsupported_anywhere

V_ALIGNED = 8
"""Elements of one 16-byte load."""


class Fa3Route:
    """See `AttendRoute`."""

    name = "fa3"
    why = "SGLang's own choice for dense decode on Hopper, and it needs no plan; not measured yet"

    def unsupported(self, shape: AttendShape, capability: tuple[int, int]) -> str | None:
        """See `AttendRoute.unsupported`."""
        dim, v_dim = shape.head_dim, shape.v_head_dim
        if capability[0] != 9:
            return f"attend route 'fa3' needs compute capability 9.x (Hopper), got {capability}"
        if dim % V_ALIGNED or dim > 256:
            return f"attend route 'fa3' needs a head_dim of 8, 16, ... 256, got {dim}"
        if v_dim != dim and not (128 < dim <= 192 and 96 < v_dim <= 128 and not v_dim % V_ALIGNED):
            return (
                "attend route 'fa3' needs V of K's head_dim, or of 104 to 128 for K of 136 to 192, "
                f"got {v_dim} for {dim}"
            )
        return unsupported_anywhere(self.name, "sgl_kernel", shape)

    def create(self, shape: AttendShape) -> "Fa3Attend":
        """See `AttendRoute.create`."""
        return Fa3Attend(shape)


class Fa3Attend:
    """See `PagedAttend`; a page table and lengths, both read on the device."""

    def __init__(self, shape: AttendShape) -> None:
        try:
            from sgl_kernel.flash_attn import flash_attn_with_kvcache
        except ImportError as error:
            raise UnsupportedSetup(
                f"attend route 'fa3' cannot import sgl_kernel: {error}"
            ) from error
        self._attend = flash_attn_with_kvcache
        self._shape = shape
        self._lists = BlockTable(shape)
        self.pages, self.offsets = self._lists.pages, self._lists.offsets
        requests = shape.rows * shape.heads
        self._query_starts = torch.arange(requests + 1, dtype=torch.int32, device=shape.device)

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
        """See `PagedAttend.run`; its lse is `[G, rows * H]` and already natural."""
        result = self._attend(
            q=q.view(-1, *q.shape[2:]),
            k_cache=head_pages(keys, self._shape.unit_size),
            v_cache=head_pages(values, self._shape.unit_size),
            page_table=self._lists.table,
            cache_seqlens=self._lists.lengths,
            cu_seqlens_q=self._query_starts,
            max_seqlen_q=1,
            softmax_scale=scale,
            causal=True,
            return_softmax_lse=lse,
        )
        shape = (*q.shape[:3], values.shape[-1])
        if not lse:
            return result.view(shape), None
        out, by_head = result[0], result[1]
        return out.view(shape), by_head.T.unflatten(0, q.shape[:2])
