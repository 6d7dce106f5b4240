"""The KV pool with page metadata, inside SGLang's own memory budget."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..config import ServerOptions
from ..errors import UnsupportedSetup
from ..geometry import UNIT_SIZE, Geometry, ceil_div
from ..page_metadata import (
    BYTES_PER_SLOT,
    KeyLayout,
    PageMetadata,
    bytes_per_record,
    bytes_per_unit,
)
from ..page_metadata.records import record_capacity
from ..selection import load_method
from ..summaries import PageSummary, SegmentSummary
from .flags import options_of

logger = logging.getLogger(__name__)

KEY_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_handed_out: list[Callable[[torch.Tensor], None]] = []
"""Listener of the allocator in a scheduler process; set by the attention backend."""


def cell_size_with_metadata(
    original: Callable[..., int], configurator: Any, kvc: Any, num_layers: int
) -> int:
    """Around `DefaultPoolConfigurator._compute_cell_size`: bytes per token, metadata included."""
    size = original(configurator, kvc, num_layers)
    options = options_of(kvc.server_args)
    if options is None or kvc.is_draft_worker or kvc.use_mla_backend:
        return size
    layout, unit = _layout(kvc, num_layers), options.request.unit_size
    size += ceil_div(bytes_per_unit(layout, summaries(options), unit), unit) + BYTES_PER_SLOT
    for summary in segments(options):
        many = 1 << 24  # so that the rounding of one pool does not matter
        records = record_capacity(many, summary.segment_size)
        size += ceil_div(bytes_per_record(summary, layout) * records, many)
    return size


def build_pool_with_metadata(
    original: Callable[..., Any], configurator: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around `KVCacheConfigurator._build_mha_kv_pool`: build a pool class that carries metadata."""
    options = options_of(configurator.server_args)
    if options is None or configurator.is_draft_worker:
        return original(configurator, *args, **kwargs)
    if configurator.kv_cache_dtype not in KEY_DTYPES:
        raise UnsupportedSetup(
            f"KV cache dtype {configurator.kv_cache_dtype} cannot be used with the sparsekv "
            "backend: page bounds need 16- or 32-bit floating keys; use --kv-cache-dtype auto"
        )
    kwargs["mha_pool_class"] = pool_class(
        kwargs["mha_pool_class"], summaries(options), options.request.unit_size, segments(options)
    )
    return original(configurator, *args, **kwargs)


def note_handed_out(slots: torch.Tensor | None, *args: Any, **kwargs: Any) -> None:
    """After the allocator's `alloc` and `alloc_extend`: pages for a writer we may not see."""
    if slots is not None:
        for listener in _handed_out:
            listener(slots)


def listen_to_allocator(listener: Callable[[torch.Tensor], None]) -> None:
    """Make `listener` the receiver of slots that `alloc` hands out in this process."""
    _handed_out[:] = [listener]


def summaries(options: ServerOptions) -> tuple[PageSummary, ...]:
    """Page summaries that the server's methods read, without repeats."""
    named = (s for name in options.methods for s in load_method(name).summaries)
    return tuple(dict.fromkeys(named))


def segments(options: ServerOptions) -> tuple[SegmentSummary, ...]:
    """Segment summaries that the server's methods read, without repeats."""
    named = [load_method(name).segments(options.index) for name in options.methods]
    named.append(options.residuals)
    return tuple(dict.fromkeys(summary for summary in named if summary is not None))


@cache
def pool_class(
    base: type,
    page_summaries: tuple[PageSummary, ...],
    unit_size: int = UNIT_SIZE,
    segment_summaries: tuple[SegmentSummary, ...] = (),
) -> type:
    """A subclass of SGLang's pool `base` that allocates `page_metadata` beside K and V."""

    class SparseKVPool(base):  # type: ignore[misc]
        page_metadata: PageMetadata

        def _create_buffers(self) -> None:
            from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE

            super()._create_buffers()
            rows, heads, head_dim = self.k_buffer[0].shape
            self.page_metadata = PageMetadata(
                Geometry(self.page_size, min(unit_size, self.page_size)),
                page_summaries,
                KeyLayout(self.layer_num, heads, head_dim, self.dtype, self.v_buffer[0].shape[-1]),
                rows,
                self.device,
                segment_summaries,
                self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE),
            )
            names = [*(s.name for s in page_summaries), *(s.name for s in segment_summaries)]
            logger.info(
                "sparsekv: %.1f MiB of page metadata (%.2f %% of K and V) for %s",
                self.page_metadata.nbytes / 2**20,
                100 * self.page_metadata.nbytes / max(1, sum(super().get_kv_size_bytes())),
                ", ".join(names) or "no summary",
            )

        def get_kv_size_bytes(self) -> tuple[int, int]:
            """K bytes with the metadata that summarises them, and V bytes."""
            k_bytes, v_bytes = super().get_kv_size_bytes()
            return k_bytes + self.page_metadata.nbytes, v_bytes

    SparseKVPool.__name__ = SparseKVPool.__qualname__ = f"SparseKV{base.__name__}"
    return SparseKVPool


def _layout(kvc: Any, num_layers: int) -> KeyLayout:
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    heads = kvc.model_config.get_num_kv_heads(parallel.attn_tp_size, parallel.attn_dcp_size)
    config = kvc.model_config
    return KeyLayout(num_layers, heads, config.head_dim, kvc.kv_cache_dtype, config.v_head_dim)
