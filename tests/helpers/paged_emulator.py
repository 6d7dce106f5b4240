"""What stock paged decode kernels read, by element arithmetic over raw storage, on a CPU.

Written from the installed sources, not from our layout: FlashInfer 0.7.2 `include/flashinfer/
page.cuh` (`get_elem_offset`, `get_length`), `attention/scheduler.cuh` (`PrefillPlanImpl`),
`csrc/xqa/mhaUtils.cuh` (`HeadPtr`) and FlashAttention 3's `hopper/flash_api.cpp`. Python layers of
FlashInfer run as they are; only the compiled functions below them are replaced.
"""

import inspect
import math
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from .installed import signature_of

PROCESSORS = 132
"""Multiprocessors of the imagined GPU."""
UINT32 = 2**32 - 1


@dataclass(frozen=True)
class Memory:
    """The storage behind a tensor, from its first element on.

    Attributes:
        cells: every element of the storage, flat.
        base: where the tensor begins.
    """

    cells: torch.Tensor
    base: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Memory":
        """Memory that a kernel reaches from a tensor's data pointer."""
        cells = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return cls(cells, tensor.storage_offset())

    def read(self, offsets: torch.Tensor) -> torch.Tensor:
        """Elements at offsets from the pointer; outside the storage is an error."""
        places = offsets + self.base
        if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < len(self.cells):
            raise IndexError(f"read of {int(places.max())} outside {len(self.cells)} elements")
        return self.cells[places]


def read_rows(
    cache: torch.Tensor, strides: tuple[int, int, int], pages: torch.Tensor, tokens: int, dim: int
) -> torch.Tensor:
    """Rows `[tokens, dim]`, float64, of the one KV head: page * s0 + entry * s1 + head * s2 + d."""
    token, size, head = torch.arange(tokens), cache.shape[1], 0
    page = pages[token // size].long()
    start = page * strides[0] + (token % size) * strides[1] + head * strides[2]
    return Memory.of(cache).read(start[:, None] + torch.arange(dim)).double()


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """q `[G, D]` over `[L, D]`, `[L, Dv]`: (out, natural lse); nothing read gives (0, -inf)."""
    logits = q.double() @ keys.T * scale
    return logits.softmax(-1) @ values, logits.logsumexp(-1)


def check_int32(**tensors: torch.Tensor) -> None:
    """The compiled side casts these pointers to int32 without looking."""
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.int32 and tensor.is_contiguous(), name


def check_rows(q: torch.Tensor, *caches: torch.Tensor) -> None:
    """Element type, a unit last stride, and 16-byte loads."""
    assert q.dtype in (torch.bfloat16, torch.float16) and q.stride(-1) == 1
    for cache in caches:
        assert cache.dtype == q.dtype and cache.stride(-1) == 1
        assert all(s * cache.element_size() % 16 == 0 for s in cache.stride()[:-1])


class Fa2Module:
    """`BatchPrefillWithKVCachePlan` and `...PagedRun` of one head dim."""

    def __init__(self, *config: Any) -> None:
        self.config = inspect.signature(_real("flashinfer.jit.attention.modules")).bind(*config)
        parts = ("flashinfer", "prefill.py", "get_batch_prefill_module", "paged_run")
        self.signature = signature_of(*parts)
        values = self.config.arguments
        assert values["backend"] == "fa2" and values["dtype_idx"] == torch.int32
        assert values["head_dim_qk"] == values["head_dim_vo"] and not values["head_dim_qk"] % 64

    def plan(self, floats: Any, ints: Any, pinned: Any, *args: Any) -> SimpleNamespace:
        """Split rows as the planner does; its buffers must fit."""
        qo, indptr, kv_lens, total, batch, heads, kv_heads, page_size, graph, dim, _ = args[:11]
        causal, window, fixed, disabled, colocated, uniform = args[11:]
        assert (causal, window, fixed, disabled, colocated, uniform) == (0, -1, -1, 0, 0, 0)
        assert pinned.shape == ints.shape and total == batch == len(indptr) - 1
        check_int32(qo=qo, indptr=indptr, kv_lens=kv_lens)
        group, pages = heads // kv_heads, (indptr[1:] - indptr[:-1]).tolist()
        tile = (128 if group > 64 and dim < 256 else 64) if group > 16 else 16
        most, each = 2 * PROCESSORS // kv_heads, -(-group // tile)
        low, high = max(128 // page_size, 1), max(pages)
        while low < high:
            middle = (low + high) // 2
            if sum(each * -(-max(p, 1) // middle) for p in pages) > most:
                low = middle + 1
            else:
                high = middle
        chunks = [-(-max(p, 1) // low) for p in pages]
        padded = sum(chunks) * each
        if graph:
            padded = max(most, -(-total * group // tile) + batch - 1)
        assert sum(chunks) * each <= padded
        partial = -(-padded * tile // group)
        need = [heads * partial * dim * 4, heads * partial * 4]
        tables = [4 * padded] * 3 + [4 * (batch + 1), 4, 4, 4 * (total + 1), padded]
        assert sum(n + 16 for n in need) <= floats.nbytes
        assert sum(n + 16 for n in tables) <= ints.nbytes
        return SimpleNamespace(chunks=chunks, chunk=low * page_size, indptr=indptr.clone())

    def paged_run(self, *args: Any) -> None:
        """Read pages of every request by the strides of the caches."""
        a = SimpleNamespace(**self.signature.bind(*args).arguments)
        k, v, plan = a.paged_k_cache, a.paged_v_cache, a.plan_info_vec
        check_int32(p=a.paged_kv_indptr, i=a.paged_kv_indices, t=a.paged_kv_last_page_len)
        check_rows(a.q, k, v)
        assert k.stride() == v.stride() and k.shape[2] == 1 and a.o.is_contiguous()
        assert torch.equal(a.paged_kv_indptr, plan.indptr), "device lengths are not those planned"
        assert a.qo_indptr.tolist() == list(range(len(plan.indptr)))
        assert a.layout == 0 and a.logits_soft_cap == 0
        strides = tuple(s & UINT32 for s in k.stride()[:3])
        for i, begin in enumerate(a.paged_kv_indptr[:-1].tolist()):
            end = int(a.paged_kv_indptr[i + 1])
            tokens = (end - begin - 1) * k.shape[1] + int(a.paged_kv_last_page_len[i])
            tokens = 0 if begin == end else tokens
            assert -(-max(tokens, 1) // plan.chunk) == plan.chunks[i]
            pages = a.paged_kv_indices[begin:end]
            keys = read_rows(k, strides, pages, tokens, a.q.shape[2])
            values = read_rows(v, strides, pages, tokens, v.shape[3])
            out, lse = attend(a.q[i], keys, values, a.sm_scale)
            a.o[i] = out.to(a.o.dtype)
            if a.maybe_lse is not None:
                a.maybe_lse[i] = lse / math.log(2)


class XqaModule:
    """`xqa_wrapper` of one build: strides of K for both, in whole heads."""

    def __init__(self, *config: Any) -> None:
        names = inspect.signature(_real("flashinfer.jit.xqa", "gen_xqa_module")).bind(*config)
        build = SimpleNamespace(**names.arguments)
        self.size, self.dim, self.group = build.page_size, build.head_dim, build.head_group_ratio
        assert build.input_dtype in (torch.bfloat16, torch.float16)
        assert self.size in (16, 32, 64, 128) and not self.dim % 16 and 16 <= self.dim <= 512
        smem = next(n for n in (64, 128, 256, 512) if self.dim <= n) * 2
        assert smem * -(-self.group // 16) * 16 <= 16 << 10
        parts = ("flashinfer", "xqa.py", "_get_xqa_module_cached", "xqa")
        self.signature = signature_of(*parts)

    def xqa(self, *args: Any) -> None:
        """Read pages of every request."""
        a = SimpleNamespace(**self.signature.bind(*args).arguments)
        k, v = a.k_cache, a.v_cache
        check_int32(table=a.page_table, lengths=a.seq_lens)
        check_rows(a.q, k, v)
        assert k.shape == v.shape and a.num_kv_heads == 1 and a.q.is_contiguous()
        assert not a.semaphores.any() and a.semaphores.nbytes >= 4 * a.batch_size
        parts = min(max(1, PROCESSORS // a.batch_size), -(-a.max_seq_len // 256))
        assert parts * a.batch_size * (self.group + 2) * 1024 <= a.workspace_buffer.nbytes
        heads = tuple(s // self.dim & UINT32 for s in k.stride()[:3])
        strides = tuple(s * self.dim for s in heads)
        table, width = Memory.of(a.page_table), a.max_seq_len // self.size
        scale = a.q_scale / math.sqrt(self.dim)
        for i, tokens in enumerate(a.seq_lens.flatten().tolist()):
            pages = table.read(i * width + torch.arange(-(-tokens // self.size)))
            assert not (pages < 0).any()
            keys = read_rows(k, strides, pages, tokens, self.dim)
            out, _ = attend(a.q[i, 0], keys, read_rows(v, strides, pages, tokens, self.dim), scale)
            a.output[i, 0] = out.to(a.output.dtype)


def fa3_attend(*args: Any, **kwargs: Any) -> Any:
    """`flash_attn_with_kvcache` of sgl_kernel: the checks of `mha_fwd`, then paged reads."""
    signature = signature_of("sgl_kernel", "flash_attn.py", "flash_attn_with_kvcache")
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    a = SimpleNamespace(**bound.arguments)
    (total, group, dim), v_dim = a.q.shape, a.v_cache.shape[-1]
    requests, width = a.page_table.shape
    check_rows(a.q, a.k_cache, a.v_cache)
    check_int32(lengths=a.cache_seqlens, starts=a.cu_seqlens_q)
    assert a.page_table.dtype == torch.int32 and a.page_table.stride(-1) == 1
    assert a.cu_seqlens_q.tolist() == list(range(total + 1)) and a.max_seqlen_q == 1
    assert requests == total == len(a.cache_seqlens) and dim % 8 == 0 and dim <= 256
    assert dim == v_dim or (128 < dim <= 192 and 96 < v_dim <= 128)
    assert a.k_cache.shape[:3] == a.v_cache.shape[:3] and a.k_cache.shape[2] == 1
    out = a.q.new_empty(total, group, v_dim)
    lse = torch.empty(group, total)
    for i, tokens in enumerate(a.cache_seqlens.tolist()):
        pages = a.page_table[i, : -(-tokens // a.k_cache.shape[1])]
        assert tokens <= width * a.k_cache.shape[1]
        keys = read_rows(a.k_cache, a.k_cache.stride()[:3], pages, tokens, dim)
        values = read_rows(a.v_cache, a.v_cache.stride()[:3], pages, tokens, v_dim)
        result, lse[:, i] = attend(a.q[i], keys, values, a.softmax_scale)
        out[i] = result.to(out.dtype)
    return (out, lse) if a.return_softmax_lse else out


def _real(module: str, name: str = "gen_batch_prefill_module") -> Any:
    """A function of the installed package, to bind arguments to its signature."""
    return getattr(import_module(module), name)


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the emulator below FlashInfer's Python and in place of sgl_kernel's function."""
    decode, xqa = import_module("flashinfer.decode"), import_module("flashinfer.xqa")
    empty = torch.empty

    def pageable(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **kwargs)

    patch.setattr(torch, "empty", pageable)
    patch.setattr(decode, "get_batch_prefill_module", Fa2Module)
    patch.setattr(decode, "get_device_sm_count", lambda device: PROCESSORS)
    patch.setattr(xqa, "get_compute_capability", lambda device: (9, 0))
    patch.setattr(xqa, "get_xqa_module", XqaModule)
    package, module = ModuleType("sgl_kernel"), ModuleType("sgl_kernel.flash_attn")
    package.__spec__ = find_spec("sgl_kernel")
    module.flash_attn_with_kvcache = fa3_attend  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "sgl_kernel", package)
    patch.setitem(sys.modules, "sgl_kernel.flash_attn", module)
