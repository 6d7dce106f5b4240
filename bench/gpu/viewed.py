"""A step whose rows have views: drawn at random, of as many tokens as its budget."""

from dataclasses import dataclass, replace

import torch
from sgl_sparsekv.kernels.triton.buffers import VIEW_FIELDS
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.step import Step
from sgl_sparsekv.types import ViewShape

RING = 33
"""Queries of a ring, as `snapkv` has them by default."""
SINCE = 64
"""Tokens of each row that came since its view was made."""
FEWER = 5
"""Tokens that each KV head keeps less than the one before it."""


@dataclass
class Viewed:
    """A step over views.

    Attributes:
        step: launches `attend` over them.
        kept: int64 `[layers, rows, H, n]`, positions that are kept, ascending.
        counts: int64 `[H]`, how many of these.
        made: by row, tokens of the context when its view was made.
    """

    step: Step
    kept: torch.Tensor
    counts: torch.Tensor
    made: torch.Tensor

    def read(self, row: int, head: int) -> torch.Tensor:
        """Slots that a head of the first layer reads, int64 `[n]`."""
        scene, made = self.step.scene, int(self.made[row])
        since = torch.arange(made, int(scene.lengths[row]), device=scene.device)
        kept = self.kept[0, row, head, : int(self.counts[head])]
        slots: torch.Tensor = scene.req_to_token[scene.places[row]].long()
        return slots[torch.cat((kept, since))]


def shape_of(step: Step) -> ViewShape:
    """Room for a view of every row, in as many layers as take turns."""
    scene, layers = step.scene, len(step.scene.kv)
    rows, heads = scene.shape.batch, scene.extents.heads
    kept = layers * rows * heads * scene.extents.budget
    return ViewShape(rows, layers, 0, kept, layers * rows * RING, False)


def with_views(step: Step, kernels: TritonOps, draw: bool = True) -> Step:
    """The same step on a server that keeps views; without `draw`, of no row."""
    fused = kernels.fused(replace(step.fused.shape, views=shape_of(step)), step.fused.watched)
    if draw:
        fused.buffers.options.copy_(step.fused.buffers.options)
        fused.buffers.options[:, 0] = fused.formula("nothing")
    return replace(step, fused=fused)


def viewed(step: Step, kernels: TritonOps) -> Viewed:
    """The same step, each of whose rows has a view."""
    mine, scene = with_views(step, kernels), step.scene
    room, held = mine.fused.shape.views, mine.fused.buffers.views
    assert room is not None and held is not None
    rows, heads, most = scene.shape.batch, scene.extents.heads, scene.extents.budget - SINCE
    made = scene.lengths.cpu() - SINCE
    rng = torch.Generator(scene.device).manual_seed(step.unit)
    kept = torch.empty(room.layers, rows, heads, most, dtype=torch.int64, device=scene.device)
    for layer in range(room.layers):
        for row in range(rows):
            rank = torch.rand(heads, int(made[row]), generator=rng, device=scene.device)
            kept[layer, row] = rank.topk(most).indices.sort().values
    counts = most - FEWER * torch.arange(heads)
    held.kept[: kept.numel()].copy_(kept.flatten())
    first = torch.arange(room.layers * rows * heads).view(room.layers, rows, heads) * most
    spans = torch.stack((first, counts.expand_as(first)), -1).movedim(0, 1).reshape(rows, -1)
    ring = torch.arange(rows) * room.layers * RING
    heading = torch.stack((made, ring, torch.full_like(ring, RING)), 1)
    records = torch.cat((heading, spans), 1).int()
    assert heading.shape[1] == VIEW_FIELDS
    held.records[:rows, : records.shape[1]].copy_(records)
    held.of_request[scene.places] = torch.arange(rows, dtype=torch.int32, device=scene.device)
    return Viewed(mine, kept, counts, made)
