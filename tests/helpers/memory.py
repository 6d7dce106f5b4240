"""SGLang's own pools, allocator, tree and requests' rows, with our backend on them, on a CPU.

The model is a toy and there is no server. What happens to a freed page on a device (somebody else
writes it) is made visible: it is filled with NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from sgl_sparsekv.backend import kv_pool
from sgl_sparsekv.backend.held_scores import HeldScores
from sgl_sparsekv.backend.request_table import activate
from sgl_sparsekv.backend.sharing import Sharing, activate_sharing, checkpoint_offered
from sgl_sparsekv.backend.views.packing import Packing
from sgl_sparsekv.backend.views.short_memory import activate_packing, forget_places, free_held
from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata import StepSeal, record_capacity
from sgl_sparsekv.plugin import HOOKS
from sgl_sparsekv.selection import IndexOptions, load_method
from sgl_sparsekv.serving.metrics import ServingMetrics

from .fused_backend import fused_backend
from .recorder import Recorder
from .toy_model import DIM, HEADS, LAYERS, ToyModel, toy_layers

VIEWS = ("adakv", "h2o", "kvcompress", "pyramidkv", "snapkv")
METHODS = (
    *VIEWS,
    *("clusterkv", "full", "mean_std", "oracle", "pqcache", "quest", "quest_int8"),
    *("quest_two_level", "quest_two_level_exact", "residual_pq", "shadowkv", "streaming"),
)
MAX_CONTEXT = 1024
ALLOCATOR = "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator."


@dataclass
class Memory:
    """Pools, allocator, tree and attention backend of one scheduler.

    Attributes:
        core: "rust" or "python", the tree core of `UnifiedRadixCache`.
        page_size: tokens per page.
        pages: pages of the pool, without the dummy one.
        dtype: element type of K and V.
        poison: fill K, V and page metadata of freed pages with NaN.
        kind: "grouped" or "fused", how the backend decodes.
        records: segment records of each kind; None: as many as a server has.
        measure, covers: the server options `measure` and `serve_coverage`.
    """

    core: str
    page_size: int
    pages: int
    dtype: torch.dtype = torch.float32
    poison: bool = True
    rows: int = 6
    kind: str = "grouped"
    records: int | None = None
    measure: bool = False
    covers: bool = False
    model: ToyModel = field(init=False)
    fail_next_alloc: bool = False

    def __post_init__(self) -> None:
        from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

        self.model = ToyModel(self.dtype)
        self.options = ServerOptions(
            methods=self.methods,
            index=self.index,
            measure=self.measure,
            serve_coverage=self.covers,
        )
        pool_class = kv_pool.pool_class(
            MHATokenToKVPool,
            kv_pool.summaries(self.options),
            segment_summaries=kv_pool.segments(self.options),
        )
        capacity = record_capacity if self.records is None else lambda *_: self.records
        with patch("sgl_sparsekv.page_metadata.records.record_capacity", capacity):
            self.pool = pool_class(
                size=self.pages * self.page_size,
                page_size=self.page_size,
                dtype=self.dtype,
                head_num=HEADS,
                head_dim=DIM,
                layer_num=LAYERS,
                device="cpu",
                enable_memory_saver=False,
            )
        self.pool.use_native_move_kv_cache = True  # the tiled copy is a Triton kernel
        self.allocator = PagedTokenToKVPoolAllocator(
            self.pages * self.page_size, self.page_size, self.dtype, "cpu", self.pool, False
        )
        self.row_pool = ReqToTokenPool(self.rows, MAX_CONTEXT, "cpu", False)
        self.tree = self._tree()
        self.metadata = self.pool.page_metadata
        self.metadata.poison = self.poison
        self.geometry = self.metadata.geometry
        self.recorder = Recorder()
        self.backend = self._backend() if self.kind == "grouped" else fused_backend(self)
        self.recorder.backend = self.backend
        self.metrics = ServingMetrics()
        activate_sharing(Sharing(self.backend.table, self.metadata, self.metrics))
        self._pack()
        self.tree.checkpoint_into_tree = partial(
            checkpoint_offered, type(self.tree).checkpoint_into_tree, self.tree
        )
        self._held_back: list[torch.Tensor] | None = None
        self._watch_allocator()
        self._poison_pages(torch.arange(1, self.pages + 1))

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that can be had: pages of 4 hold no chunk of 8, some have no GPU kernels, and a
        CPU takes none that bring their own."""
        served = [load_method(name) for name in METHODS]
        if self.kind == "fused":
            served = [method for method in served if method.formula]
        else:
            served = [m for m in served if not any(s.kernels for s in m.summaries)]
        return tuple(m.name for m in served if self.page_size % (m.unit_size or 1) == 0)

    @property
    def kinds(self) -> dict[str, Any]:
        """Segment records that are kept, by name."""
        return dict(self.metadata.records) if self.kind == "grouped" else self.backend.records.kinds

    def recorded(self, name: str) -> dict[int, int]:
        """Record of every page that has one."""
        if self.kind == "grouped":
            return dict(self.metadata.records[name].held)
        of_page = self.backend.step.buffers.records.of_page[self.backend.step.kinds[name]]
        return {page: record for page, record in enumerate(of_page.tolist()) if record >= 0}

    @property
    def index(self) -> IndexOptions:
        """Short segments, of at least two pages."""
        size = max(64, 2 * self.page_size)
        return IndexOptions(
            size, size // 8, size, 2, 2, residual_segment=size, residual_subspaces=2
        )

    @property
    def handed_out(self) -> list[torch.Tensor]:
        """Slots whose pages lose their stamps when the next step begins."""
        owner = self.backend.seal if self.kind == "grouped" else self.backend
        return owner._handed_out

    @property
    def chooses(self) -> bool:
        """Whether every decode step is sparse for rows that ask for it."""
        return self.kind == "grouped" or self.backend.gate.needed == 0

    def _pack(self) -> None:
        """What gives memory back, and its hooks into the tree."""
        self.packing = None
        if self.kind == "grouped":
            views, table = self.backend.views, self.backend.table
            self.packing = Packing(table, views, self.pool, self.metrics)
        activate_packing(self.packing)
        kind = type(self.tree)
        self.tree.free_kv_row = partial(free_held, kind.free_kv_row, self.tree)

        def on_release(req: Any, *, checkpointed: bool) -> None:
            kind.on_release(self.tree, req, checkpointed=checkpointed)
            forget_places(None, self.tree, req, checkpointed=checkpointed)

        self.tree.on_release = on_release

    # -- construction ----------------------------------------------------------------------

    def _tree(self) -> Any:
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        return UnifiedRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.row_pool,
                token_to_kv_pool_allocator=self.allocator,
                page_size=self.page_size,
                tree_components=(ComponentType.FULL,),
                tree_core_backend=self.core,
            )
        )

    def _backend(self) -> Any:
        """Our attention backend as its constructor leaves it, without a model runner."""
        from sgl_sparsekv.backend.grouped import GroupedBackend
        from sgl_sparsekv.backend.segment_indexes import SegmentIndexes
        from sgl_sparsekv.backend.views.step_views import StepViews

        backend = GroupedBackend.__new__(GroupedBackend)
        backend.options, backend.on_cpu = self.options, True
        backend.ops = load_ops("reference")
        backend.dense = SimpleNamespace(init_forward_metadata=lambda batch: None)
        backend.req_to_token_pool, backend.token_to_kv_pool = self.row_pool, self.pool
        backend.metadata, backend.geometry = self.metadata, self.geometry
        backend.layers = toy_layers()
        backend.table = activate(self.options)
        backend.seal = StepSeal(self.metadata, backend.ops)
        backend.indexes = SegmentIndexes(self.metadata, backend.ops, self.options)
        backend.held = HeldScores()
        backend.views = StepViews(backend.layers)
        backend.observer = self.recorder
        backend.plan, backend._extend_rows, backend._decode_tokens = None, [], None
        kv_pool.listen_to_allocator(backend.seal.hand_out)
        return backend

    def _watch_allocator(self) -> None:
        """Our allocator hooks, failures on request, and what happens to pages that are freed."""
        hooks = {h.target.removeprefix(ALLOCATOR): h for h in HOOKS if ALLOCATOR in h.target}
        for name in ("alloc", "alloc_extend", "alloc_decode"):
            setattr(self.allocator, name, self._hooked(name, hooks.get(name)))
        release = self.allocator._release_page_ids

        def release_page_ids(*pages: torch.Tensor) -> None:
            release(*pages)
            for some in pages:
                self._freed(some)

        self.allocator._release_page_ids = release_page_ids

    def _hooked(self, name: str, hook: Any) -> Callable[..., Any]:
        original = getattr(self.allocator, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.fail_next_alloc:
                self.fail_next_alloc = False
                return None
            slots = original(*args, **kwargs)
            if hook is not None:
                hook(slots, self.allocator, *args, **kwargs)
            return slots

        return call

    # -- pages -----------------------------------------------------------------------------

    def _freed(self, pages: torch.Tensor) -> None:
        if self._held_back is not None:
            self._held_back.append(pages.clone())
        else:
            self._poison_pages(pages)

    def _poison_pages(self, pages: torch.Tensor) -> None:
        if not self.poison:
            return
        units = self.geometry.units_of_pages(pages)
        slots = (pages[:, None] * self.page_size + torch.arange(self.page_size)).reshape(-1)
        for layer in range(LAYERS):
            self.pool.k_buffer[layer][slots] = torch.nan
            self.pool.v_buffer[layer][slots] = torch.nan
            for summary in self.metadata.summaries:
                finer = self.geometry.finer(units, summary.tokens)
                self.metadata.fields(summary.name, layer)[finer] = summary.poison

    def _make_room(self, tokens: int) -> None:
        from sglang.srt.mem_cache.common import evict_from_tree_cache

        evict_from_tree_cache(self.tree, tokens)

    def write_unseen(self, slots: torch.Tensor, paths: list[int]) -> None:
        """K and V of positions arrive without any forward step of ours."""
        for layer in range(LAYERS):
            self.pool.k_buffer[layer][slots] = self.model.keys(layer, paths)
            self.pool.v_buffer[layer][slots] = self.model.values(layer, paths)
