"""Our decode of a scene: static buffers, page metadata, and the launches of a layer."""

from dataclasses import dataclass, replace

import torch
from sgl_sparsekv.kernels.triton import load
from sgl_sparsekv.kernels.triton.fused import FusedDecode
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.shapes import Extents, Scene
from bench.gpu.timing import layers_beyond_cache
from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.policy import RowPlan
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Reduction, StepShape

SUMMARIES = {"min_max": Quest.summary, "mean_std": MeanStd.summary}
MOST_COPIES = 128
FORMULAS = frozenset(load_method(name).formula for name in ServerOptions().methods)
"""What a server with default flags compiles its kernels for."""


@dataclass
class Step:
    """One decode step of all rows of a scene, by Quest.

    Attributes:
        scene: the batch.
        unit: tokens per unit.
        fused: what runs.
        sealed: bool `[pool units]`; each row's newest unit has no stamp: it is summarised.
        fields: page metadata, more layers of it than the cache holds.
        newest: int64 `[rows]`, slot of each row's newest token.
    """

    scene: Scene
    unit: int
    fused: FusedDecode
    sealed: torch.Tensor
    fields: list[torch.Tensor]
    newest: torch.Tensor

    @property
    def chosen(self) -> int:
        """Layers of KV that take turns."""
        return len(self.scene.kv)

    def by(self, kernels: TritonOps) -> "Step":
        """The same step, launched by other kernels with buffers of their own."""
        fused = kernels.fused(self.fused.shape, self.fused.watched)
        fused.buffers.options.copy_(self.fused.buffers.options)
        return replace(self, fused=fused)

    def begin(self) -> None:
        """Plan the step."""
        scene = self.scene
        self.fused.begin(self.sealed, scene.places, scene.lengths, scene.req_to_token)

    def once(self, _: int) -> None:
        """What a step does once, beside its layers."""
        self.fused.forget(self.sealed, self.newest)
        self.begin()
        self.fused.end(self.sealed)

    def put(self, plan: RowPlan, pending: torch.Tensor, dense_layers: int = 0) -> None:
        """Write a plan, the units of every row and a list of pending ones: `begin` without it."""
        held, rows = self.fused.buffers, self.scene.shape.batch
        kinds = (self.fused.formula("nothing"), self.fused.formula("min_max"))
        formulas = [kinds[not dense] for dense in plan.dense]
        fields = (formulas, plan.begin, plan.end, plan.num_units, plan.counts, plan.tail)
        for field, values in enumerate((*fields, [dense_layers] * rows)):
            made = torch.tensor([int(x) for x in values], dtype=torch.int32)
            held.plan[field, :rows].copy_(made)
        units = self.scene.units(self.unit)
        table = torch.where(self.sealed[units], units, units - 2**31).int()  # as `begin` marks them
        held.table[:rows, : table.shape[1]].copy_(table)
        held.pending[: len(pending)].copy_(pending)
        held.pending_count.fill_(len(pending))

    def normaliser(self) -> torch.Tensor:
        """Log of the sum over the candidates that `score` left behind, float64 `[rows, H, G]`."""
        parts = self.fused.buffers.parts[: self.scene.shape.batch].double()
        return (parts[:, :, :, 0] + parts[:, :, :, 1].log()).logsumexp(2)

    def decode(self, i: int, paged: object = None) -> torch.Tensor:
        """One layer: `[rows, H, G, Dv]`."""
        keys, values = self.scene.kv[i % self.chosen]
        fields = {"min_max": self.fields[i % len(self.fields)]}
        return self.fused.decode(
            self.sealed, i, self.scene.q, keys, values, fields, self.scene.extents.scale, paged
        )

    def score(self, i: int) -> None:
        """The first launch of a layer: scores, and summaries of what just filled."""
        keys = self.scene.kv[i % self.chosen][0]
        fields = {"min_max": self.fields[i % len(self.fields)]}
        scale = self.scene.extents.scale
        self.fused._score(self.sealed, i, self.scene.q, keys, fields, scale)

    def select(self, i: int) -> None:
        """The second; leaves scores that a second call in a row would reduce again."""
        self.fused._select(i, self.scene.shape.batch, None)

    def attend(self, i: int) -> torch.Tensor:
        """The third, over what was selected last."""
        keys, values = self.scene.kv[i % self.chosen]
        scale = self.scene.extents.scale
        return self.fused._attend(i, self.scene.q, keys, values, scale)

    def selection(self, i: int) -> None:
        """Score and select."""
        self.score(i)
        self.select(i)


def static_shape(
    extents: Extents, rows: int, unit: int, units: int, pool_units: int, device: torch.device
) -> StepShape:
    """Extents of a step's buffers: `rows` rows of `units` units each."""
    return StepShape(
        rows, rows + 1, units, units, pool_units, extents.heads, extents.group, extents.dim,
        extents.dim, unit, extents.page, extents.dtype, device, FORMULAS, Reduction.MAX_SOFTMAX,
    )  # fmt: skip


def make_step(
    scene: Scene, unit: int, copies: int | None = None, watched: bool = False,
    kernels: TritonOps | None = None, units: int | None = None,
) -> Step:  # fmt: skip
    """Buffers, options and metadata of a scene.

    Args:
        scene: the batch.
        unit: tokens per unit.
        copies: layers of metadata; None: more than the cache holds.
        watched: keep logical units too.
        kernels: what launches; None: the package's own.
        units: width of the buffers; None: that of the context.
    """
    extents, shape, device = scene.extents, scene.shape, scene.device
    pool_units, units = scene.slots // unit, units or shape.context // unit
    static = static_shape(extents, shape.batch, unit, units, pool_units, device)
    fused = (kernels or load()).fused(static, watched=watched)
    row = [fused.formula("min_max"), extents.budget, 0, extents.sink, extents.window]
    fused.buffers.options.zero_()
    fused.buffers.options[:, : len(row)] = torch.tensor(row, dtype=torch.int32, device=device)
    table = scene.units(unit)
    sealed = torch.zeros(pool_units, dtype=torch.bool, device=device)
    sealed[table.flatten()] = True
    sealed[table[:, -1]] = False
    rows = 1 if shape.shared else shape.batch
    size = int(rows * shape.context * extents.metadata_bytes(unit))
    copies = copies or layers_beyond_cache(size, device, MOST_COPIES)
    newest = scene.req_to_token[scene.places, -1].long()
    return Step(scene, unit, fused, sealed, make_fields(scene, unit, copies), newest)


def make_fields(scene: Scene, unit: int, copies: int) -> list[torch.Tensor]:
    """Quest's fields of full units but each row's newest, NaN elsewhere; one tensor per layer.

    By the reference: a kernel that is wrong is not named by what another one was given.
    """
    ops, table = load_ops("reference"), scene.units(unit)
    full = table[:, :-1].flatten().unique()
    made: list[torch.Tensor] = []
    for i in range(copies):
        if i >= len(scene.kv):
            made.append(made[i % len(scene.kv)].clone())
            continue
        shape = (scene.slots // unit, scene.extents.heads, 2, scene.extents.dim)
        fields = torch.full(shape, torch.nan, dtype=scene.extents.dtype, device=scene.device)
        ops.summarise(Quest.summary, scene.kv[i][0], fields, full)
        made.append(fields)
    return made
