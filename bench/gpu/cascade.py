"""Requests on one long prefix: our three launches against attention that reads the prefix once."""

from typing import Any

import torch

from bench.gpu.kernels import Run, add_peer, versus
from bench.gpu.log import Skip
from bench.gpu.peers import WORKSPACE, Attend, Peer, imported, paged, queries, usable
from bench.gpu.shapes import (
    SHARED,
    SHARED_REHEARSED,
    UNITS,
    Scene,
    Shape,
    fits,
    layers_of,
    make_scene,
)
from bench.gpu.step import make_step
from bench.gpu.timing import Recording, interleave, record


def shared_prefix(run: Run) -> None:
    """Gate and time the shared shape."""
    shape = SHARED_REHEARSED if run.rehearse else SHARED
    wanted = UNITS[-1:] if run.rehearse else UNITS
    units = [unit for unit in wanted if run.is_green(shape, unit) or run.ungated]
    if units:
        run.log.attempt(f"times {shape}", lambda: time_shared(run, shape, units))


def time_shared(run: Run, shape: Shape, units: list[int]) -> str:
    """Time ours and cascade attention, taking turns.

    Raises:
        Skip: the pools do not fit the memory.
    """
    layers = layers_of(run.extents, shape, run.device)
    reason = fits(run.extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    scene = make_scene(run.extents, shape, run.device, layers)
    recorded: dict[str, Recording] = {}
    for unit in units:
        step = make_step(scene, unit, kernels=run.kernels)
        step.begin()
        recorded[f"ours {unit}"] = record(step.decode, max(layers, len(step.fields)), run.device)
    peers = []
    for peer, call in usable(run.log, scene, scene.pages, CASCADES):
        if add_peer(run, recorded, peer.name, call, layers):
            peers.append(peer)
    times = interleave(recorded, run.repeats, run.device)
    judged = any(peer.judges for peer in peers)
    for unit in units:
        found = {peer.name: times[peer.name] for peer in peers}
        at = (shape.context, shape.batch, unit)
        row = versus("shared_prefix", at, times[f"ours {unit}"], found, judged)
        run.log.add(run.marked(row, shape))
    return f"{layers} layers take turns"


def flashinfer_cascade(scene: Scene, table: torch.Tensor) -> Attend:
    """FlashInfer's cascade of two levels: the common pages, and each request's last one."""
    cascade = imported("flashinfer.cascade")
    like = {"dtype": torch.int32, "device": scene.device}
    buffers = cascade_buffers(table, scene.extents.page, like)
    wrapper = cascade.MultiLevelCascadeAttentionWrapper(**cascade_arguments(scene.device, buffers))
    wrapper.plan(*buffers, **cascade_plan(scene))
    q = queries(scene)
    return lambda i: wrapper.run(q, paged(scene, i))


def cascade_buffers(
    table: torch.Tensor, page: int, like: dict[str, Any]
) -> tuple[list[torch.Tensor], ...]:
    """Query starts, page starts, pages and last page lengths, of both levels."""
    rows, shared = table.shape[0], table.shape[1] - 1
    each = torch.arange(rows + 1, **like)
    return (
        [torch.tensor([0, rows], **like), each],
        [torch.tensor([0, shared], **like), each],
        [table[0, :shared].contiguous(), table[:, shared].contiguous()],
        [torch.tensor([page], **like), torch.full((rows,), page, **like)],
    )


def cascade_arguments(
    device: torch.device, buffers: tuple[list[torch.Tensor], ...]
) -> dict[str, Any]:
    """Of the wrapper, in a CUDA graph."""
    names = ("qo_indptr", "paged_kv_indptr", "paged_kv_indices", "paged_kv_last_page_len")
    own = {
        f"{name}_buf_arr": [tensor.clone() for tensor in level]
        for name, level in zip(names, buffers, strict=True)
    }
    workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)
    return {
        "num_levels": 2, "float_workspace_buffer": workspace, "kv_layout": "NHD",
        "use_cuda_graph": True, **own,
    }  # fmt: skip


def cascade_plan(scene: Scene) -> dict[str, Any]:
    """Of its `plan`, beside the buffers."""
    extents = scene.extents
    return {
        "num_qo_heads": extents.heads * extents.group,
        "num_kv_heads": extents.heads,
        "head_dim": extents.dim,
        "page_size": extents.page,
        "sm_scale": extents.scale,
        "q_data_type": extents.dtype,
        "kv_data_type": extents.dtype,
    }


def sdpa_once(scene: Scene, table: torch.Tensor) -> Attend:
    """Torch's attention of all queries over the prefix alone: less work than a cascade."""
    size, shared = scene.extents.page, table.shape[1] - 1

    def call(i: int) -> torch.Tensor:
        keys, values = (
            pool[size : size + shared * size].transpose(0, 1)[None]
            for pool in scene.kv[i % len(scene.kv)]
        )
        q = scene.q.transpose(0, 1).flatten(1, 2)[None]  # [1, H, rows * G, D]
        return torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, scale=scene.extents.scale
        )

    return call


CASCADES = (
    Peer("flashinfer cascade", flashinfer_cascade),
    Peer("torch sdpa, prefix alone", sdpa_once, judges=False),
)
