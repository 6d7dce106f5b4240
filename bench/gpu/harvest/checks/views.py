"""`attend` over views: other tokens, and other numbers of them, in every KV head."""

import torch

from bench.gpu.gate import exact_attention
from bench.gpu.harvest.checks.inputs import Setting, each, prepare, rows_of
from bench.gpu.harvest.differ import near, same
from bench.gpu.kernels import Run
from bench.gpu.viewed import RING, Viewed, viewed

AXES = ("query", "channel")


def check(run: Run) -> None:
    """What is read, and the queries that are noted."""
    each(run, "attend over views", over_views)


def over_views(run: Run, setting: Setting) -> str:
    """K and V of all that no head of any row reads are NaN.

    Raises:
        AssertionError: a channel or a query errs, or a ticket is not back at 0.
    """
    from sgl_sparsekv.kernels.triton import load

    found = viewed(prepare(run, setting), run.kernels or load())
    poison_unread(found)
    step, held = found.step, found.step.fused.buffers
    step.begin()
    held.out.fill_(torch.nan)
    out = step.attend(0)
    same("tickets", held.tickets, torch.zeros_like(held.tickets), ("row", "head"))
    for row in rows_of(setting):
        for head in range(setting.extents.heads):
            want, band = exact_attention(step.scene, row, head, found.read(row, head))
            near(f"row {row}, head {head}", out[row, head], want, band, AXES)
        assert held.views is not None
        ring = held.views.queries[row * len(step.scene.kv) * RING :]
        noted = ring[(int(step.scene.lengths[row]) - 1) % RING].view_as(step.scene.q[row])
        same(f"queries of row {row}", noted, step.scene.q[row], ("head", *AXES))
    return f"{len(rows_of(setting))} of {setting.shape.batch} rows"


def poison_unread(found: Viewed) -> None:
    """NaN where no row reads a token for a head, in K and V of the first layer."""
    scene = found.step.scene
    for head in range(scene.extents.heads):
        kept = torch.zeros(scene.slots, dtype=torch.bool, device=scene.device)
        for row in range(scene.shape.batch):
            kept[found.read(row, head)] = True
        for pool in scene.kv[0]:
            pool[:, head].masked_fill_(~kept[:, None], torch.nan)
