"""Dense decode by all who can: our own kernel over every unit, torch's, and those that judge.

Beside them stands a plain read of the same bytes.
"""

from dataclasses import replace

import torch

from bench.gpu.harvest.points import NARROW_SHAPE
from bench.gpu.kernels import Run, add_peer
from bench.gpu.log import Fact, Skip
from bench.gpu.peers import DENSE, usable
from bench.gpu.shapes import (
    REHEARSED_ALONE,
    SPARE_PAGES,
    UNITS,
    K,
    Scene,
    Shape,
    fits,
    make_scene,
)
from bench.gpu.step import make_step
from bench.gpu.timing import Recording, interleave, layers_beyond_cache, record

SHAPES = (Shape(32 * K, 1), NARROW_SHAPE, Shape(128 * K, 8), Shape(128 * K, 1), Shape(8 * K, 8),
          Shape(8 * K, 1))  # fmt: skip


def dense(run: Run) -> None:
    """Every shape, every competitor that runs here."""
    for shape in [REHEARSED_ALONE] if run.rehearse else SHAPES:
        run.log.attempt(f"dense {shape}", lambda s=shape: time_dense(run, s))


def time_dense(run: Run, shape: Shape) -> str:
    """Time all, taking turns, and what each reads per second.

    Raises:
        Skip: the pools do not fit the memory.
    """
    size = shape.batch * shape.context * run.extents.kv_bytes
    layers = layers_beyond_cache(size, run.device, 32)
    reason = fits(run.extents, shape, layers, run.device)
    if reason:
        raise Skip(reason)
    scene = make_scene(run.extents, shape, run.device, layers)
    recorded: dict[str, Recording] = {}
    for unit in UNITS[:1] if run.rehearse else UNITS:
        step = make_step(scene, unit, copies=1, kernels=run.kernels)
        step.fused.buffers.options[:, 0] = step.fused.formula("nothing")
        step.begin()
        recorded[f"own attend, units of {unit}"] = record(step.attend, layers, run.device)
    recorded["plain read"] = record(lambda i: plain_read(scene, i), layers, run.device)
    everyone = tuple(replace(peer, judges=False) for peer in DENSE)
    for peer, call in usable(run.log, scene, scene.pages, everyone):
        add_peer(run, recorded, peer.name, call, layers)
    times = interleave(recorded, run.repeats, run.device)
    for name, found in times.items():
        run.log.add(Fact(f"dense {shape}, {name}", found.least, "us"))
        run.log.add(Fact(f"dense {shape}, {name}, reads", size / found.least / 1e6, "TB/s"))
    return f"{layers} layers take turns"


def plain_read(scene: Scene, i: int) -> None:
    """Sum the same bytes as numbers of 32 bits: what reading alone takes."""
    for pool in scene.kv[i % len(scene.kv)]:
        own = pool[scene.extents.page : -SPARE_PAGES * scene.extents.page]
        own.reshape(-1).view(torch.int32).sum()
