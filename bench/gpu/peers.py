"""Dense decode by others, over the same pools: what a target is judged against.

A peer is made for a table of pages and gives a call per layer. Host work (`plan`) happens when it
is made. Torch's attention stands in where no peer of a target can be had; it judges only where it
reads about as fast as memory gives.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch

from bench.gpu.gate import check, check_attention
from bench.gpu.log import Log, Skip, last_line
from bench.gpu.shapes import Scene

WORKSPACE = 512 << 20
Attend = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Peer:
    """One competitor.

    Attributes:
        name: as it is printed.
        make: scene and table of pages int32 `[rows, pages]` -> call of a layer's number giving
            `[rows, Hq, D]`.
        judges: it is the peer that a target means.
    """

    name: str
    make: Callable[[Scene, torch.Tensor], Attend]
    judges: bool = True


def imported(module: str) -> Any:
    """A module.

    Raises:
        Skip: it is not installed, or does not load here.
    """
    if not torch.cuda.is_available():
        raise Skip(f"{module} needs a GPU")
    try:
        return import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise Skip(f"cannot import {module}: {last_line(error)}") from error


def paged(scene: Scene, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a layer as pages `[pages, page, H, D]`."""
    keys, values = scene.kv[i % len(scene.kv)]
    size = scene.extents.page
    return keys.unflatten(0, (-1, size)), values.unflatten(0, (-1, size))


def queries(scene: Scene) -> torch.Tensor:
    """`[rows, Hq, D]`."""
    return scene.q.flatten(1, 2)


def flashinfer_decode(backend: str) -> Callable[[Scene, torch.Tensor], Attend]:
    """FlashInfer's batch decode over whole pages, as its own users plan it."""

    def make(scene: Scene, table: torch.Tensor) -> Attend:
        decode = imported("flashinfer.decode")
        rows, count = table.shape
        like = {"dtype": torch.int32, "device": scene.device}
        indptr = torch.arange(rows + 1, **like) * count
        last = torch.full((rows,), scene.extents.page, **like)
        pages = table.flatten().contiguous()
        wrapper = decode.BatchDecodeWithPagedKVCacheWrapper(
            **decode_arguments(scene.device, indptr, pages, last, backend)
        )
        wrapper.plan(indptr.cpu(), pages, last.cpu(), **plan_arguments(scene))
        q = queries(scene)
        return lambda i: wrapper.run(q, paged(scene, i))

    return make


def decode_arguments(
    device: torch.device, indptr: torch.Tensor, pages: torch.Tensor, last: torch.Tensor,
    backend: str,
) -> dict[str, Any]:  # fmt: skip
    """Of FlashInfer's decode wrapper, in a CUDA graph; buffers of its own, as it asks for."""
    return {
        "float_workspace_buffer": torch.zeros(WORKSPACE, dtype=torch.uint8, device=device),
        "kv_layout": "NHD",
        "use_cuda_graph": True,
        "use_tensor_cores": True,
        "paged_kv_indptr_buffer": indptr.clone(),
        "paged_kv_indices_buffer": pages.clone(),
        "paged_kv_last_page_len_buffer": last.clone(),
        "backend": backend,
    }


def plan_arguments(scene: Scene) -> dict[str, Any]:
    """Of its `plan`."""
    extents = scene.extents
    return {
        "num_qo_heads": extents.heads * extents.group,
        "num_kv_heads": extents.heads,
        "head_dim": extents.dim,
        "page_size": extents.page,
        "q_data_type": extents.dtype,
        "kv_data_type": extents.dtype,
        "sm_scale": extents.scale,
    }


def sgl_fa3(scene: Scene, table: torch.Tensor) -> Attend:
    """FlashAttention 3 as SGLang ships and calls it."""
    attend = imported("sgl_kernel.flash_attn").flash_attn_with_kvcache
    arguments = fa3_arguments(scene, table)

    def call(i: int) -> torch.Tensor:
        keys, values = paged(scene, i)
        out: torch.Tensor = attend(k_cache=keys, v_cache=values, **arguments)
        return out

    return call


def fa3_arguments(scene: Scene, table: torch.Tensor) -> dict[str, Any]:
    """All but the pools."""
    rows, count = table.shape
    like = {"dtype": torch.int32, "device": scene.device}
    return {
        "q": queries(scene),
        "page_table": table.contiguous(),
        "cache_seqlens": torch.full((rows,), count * scene.extents.page, **like),
        "cu_seqlens_q": torch.arange(rows + 1, **like),
        "max_seqlen_q": 1,
        "softmax_scale": scene.extents.scale,
        "causal": True,
    }


def sdpa(scene: Scene, table: torch.Tensor, backend: str | None = None) -> Attend:
    """Torch's attention over contiguous tokens of the same number, a group's queries together."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows, count = table.shape
    tokens, size = count * scene.extents.page, scene.extents.page

    def call(i: int) -> torch.Tensor:
        keys, values = (
            pool[size : size + rows * tokens].unflatten(0, (rows, tokens)).transpose(1, 2)
            for pool in scene.kv[i % len(scene.kv)]
        )
        with nullcontext() if backend is None else sdpa_kernel(getattr(SDPBackend, backend)):
            out = torch.nn.functional.scaled_dot_product_attention(
                scene.q, keys, values, scale=scene.extents.scale
            )
        return out.flatten(1, 2)

    return call


DENSE = (
    Peer("flashinfer fa2", flashinfer_decode("fa2")),
    Peer("flashinfer fa3", flashinfer_decode("fa3")),
    Peer("sgl_kernel fa3", sgl_fa3),
    Peer("torch flash", partial(sdpa, backend="FLASH_ATTENTION"), judges=False),
    Peer("torch cudnn", partial(sdpa, backend="CUDNN_ATTENTION"), judges=False),
    Peer("torch sdpa", sdpa, judges=False),
)


def usable(
    log: Log, scene: Scene, table: torch.Tensor, peers: tuple[Peer, ...] = DENSE
) -> Iterator[tuple[Peer, Attend]]:
    """Peers that run here and give the right numbers; the others are recorded with their reason.

    Stand-ins are left out where a peer that judges was found.
    """
    judged = False
    for peer in peers:
        if judged and not peer.judges:
            continue
        made: list[Attend] = []

        def attempt(peer: Peer = peer, made: list[Attend] = made) -> str:
            try:
                call = peer.make(scene, table)
                out = call(0)
            except Exception as error:
                if isinstance(error, Skip):
                    raise
                raise Skip(f"does not run here: {last_line(error)}") from error
            check(out.isfinite().all(), f"{peer.name} gives numbers that are not finite")
            if peer.judges:
                size = scene.extents.page
                by_head = out.view(scene.q.shape)[0]
                for head in (0, scene.extents.heads - 1):
                    check_attention(scene, 0, head, table[0].long() * size, size, by_head[head])
            made.append(call)
            return "runs, and is right" if peer.judges else "runs"

        log.attempt(f"peer {peer.name}, {scene.shape}, {table.shape[1]} pages", attempt)
        if made:
            judged = judged or peer.judges
            yield peer, made[0]
