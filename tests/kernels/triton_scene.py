"""A pool, requests with options of their own, and one decode step over them."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from cases import Batch, make_batch
from sgl_sparsekv.kernels.triton import load
from sgl_sparsekv.kernels.triton.fused import FusedDecode
from triton_kit import ALL, DEVICE, REFERENCE, SUMMARIES

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.segments.landmarks import CHUNK
from sgl_sparsekv.selection.policy import RowOptions, RowPlan, plan_rows
from sgl_sparsekv.selection.shadowkv import ShadowKV
from sgl_sparsekv.types import Reduction, StepShape

FORMULAS = frozenset({"position", "min_max", "mean_std", "exact"})
OF_CHUNKS = {summary.name: summary for summary in ShadowKV.summaries}
POISON = -(10**6)


@dataclass(frozen=True)
class Request:
    """One row: its length in tokens and its options."""

    length: int
    formula: str = "min_max"
    budget: int = 256
    sink: int = 16
    window: int = 48
    dense_layers: int = 0
    finer: int = 0


@dataclass
class Scene:
    """Requests over one pool; all that no request owns is NaN, and page 0 is nobody's.

    Attributes:
        requests: one per row.
        batch: rows over the pool, in units.
        shape: static extents.
        places: row of `req_to_token` of each request.
        req_to_token: int32 `[places, context]`.
        sealed: bool `[pool units]`, as the last step left it.
        fields: by name of summary; NaN without a stamp.
    """

    requests: list[Request]
    batch: Batch
    shape: StepShape
    places: torch.Tensor
    req_to_token: torch.Tensor
    sealed: torch.Tensor
    fields: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """Page and unit."""
        return Geometry(self.shape.page_size, self.shape.unit_size)

    def plan(self) -> RowPlan:
        """The host's plan."""
        columns = [
            [getattr(r, name) for r in self.requests] for name in ("budget", "sink", "window")
        ]
        lengths = np.array(self.batch.lengths, dtype=np.int64)
        options = RowOptions(*(np.array(column, dtype=np.int64) for column in columns))
        finer = np.array([request.finer for request in self.requests], dtype=np.int64)
        return plan_rows(lengths, options, self.geometry, self.shape.unit_size >> finer)

    def own_units(self, row: int) -> Batch:
        """The batch with tables of one row's units."""
        unit = self.shape.unit_size >> self.requests[row].finer
        parts = torch.arange(self.shape.unit_size // unit, dtype=torch.int32)
        table = self.batch.table[..., None] * len(parts) + parts
        return replace(self.batch, table=table.flatten(1), unit_size=unit)

    def full_units(self) -> torch.Tensor:
        """Full physical units of every row, int64."""
        unit = self.shape.unit_size
        rows = [self.batch.table[row, : n // unit] for row, n in enumerate(self.batch.lengths)]
        return torch.cat(rows).long()

    def seal(self, units: torch.Tensor) -> None:
        """Summarise and stamp units, as earlier steps did."""
        for name, fields in self.fields.items():
            summary = {**ALL, **OF_CHUNKS}[name]
            finer = self.geometry.finer(units, summary.tokens)
            REFERENCE.summarise(summary, self.batch.keys, fields, finer)
        self.sealed[units] = True

    def copy(self) -> "Scene":
        """The same pool with stamps and fields of its own."""
        fields = {name: tensor.clone() for name, tensor in self.fields.items()}
        return replace(self, sealed=self.sealed.clone(), fields=fields)


@dataclass
class Step:
    """A scene on the device, and its static buffers.

    Attributes:
        scene: the host's copy; `sealed` and `fields` are those before the step.
        fused: what runs.
        sealed: stamps on the device.
        fields: page metadata on the device.
    """

    scene: Scene
    fused: FusedDecode
    sealed: torch.Tensor
    fields: dict[str, torch.Tensor]

    @classmethod
    def of(cls, scene: Scene) -> "Step":
        """Buffers whose table of options holds the requests of the scene."""
        fused = load().fused(scene.shape, watched=True)
        fused.buffers.options.fill_(POISON)
        for request, place in zip(scene.requests, scene.places.tolist(), strict=True):
            number = fused.formula(request.formula)
            own = (request.sink, request.window, request.dense_layers, request.finer)
            row = [number, request.budget, 0, *own, 0]
            fused.buffers.options[place] = torch.tensor(row, dtype=torch.int32, device=DEVICE)
        fields = {name: tensor.to(DEVICE) for name, tensor in scene.fields.items()}
        return cls(scene, fused, scene.sealed.to(DEVICE), fields)

    def begin(self, rows: list[int] | None = None) -> None:
        """Plan all rows, or some."""
        chosen = rows if rows is not None else list(range(len(self.scene.requests)))
        lengths = torch.tensor([self.scene.batch.lengths[row] for row in chosen], device=DEVICE)
        places = self.scene.places[chosen].to(DEVICE)
        self.fused.begin(self.sealed, places, lengths, self.scene.req_to_token.to(DEVICE))

    def decode(self, layer: int = 0, rows: list[int] | None = None, paged: object = None):
        """One layer of all rows, or some: `[rows, H, G, Dv]` on the host."""
        batch = self.scene.batch
        q = batch.q if rows is None else batch.q[rows]
        parts = [x.to(DEVICE) for x in (q, batch.keys, batch.values)]
        scale = batch.q.shape[-1] ** -0.5
        out = self.fused.decode(self.sealed, layer, *parts, self.fields, scale, paged)
        return out.cpu().clone()

    def measure(self, layer: int = 0, rows: list[int] | None = None) -> torch.Tensor:
        """Behind `decode` of the same: masses `[rows, H, G]` of the layer, on the host."""
        batch, held = self.scene.batch, self.fused.buffers
        q = batch.q if rows is None else batch.q[rows]
        self.fused.measure(layer, q.to(DEVICE), batch.keys.to(DEVICE), q.shape[-1] ** -0.5)
        nth = layer - self.scene.shape.measured.start
        return held.masses[: len(q), nth].cpu().clone()

    def score(self, layer: int = 0) -> None:
        """The first launch of a layer, for all rows."""
        batch = self.scene.batch
        q, keys, scale = batch.q.to(DEVICE), batch.keys.to(DEVICE), batch.q.shape[-1] ** -0.5
        self.fused._score(self.sealed, layer, q, keys, self.fields, scale)

    def end(self) -> None:
        """Stamp what was summarised."""
        self.fused.end(self.sealed)

    def lists(self, row: int, count: int) -> torch.Tensor:
        """Logical units chosen for a row, `[H, count]`."""
        held = self.fused.buffers
        logical = held.logical[row, :, :count].cpu()
        physical = self.scene.own_units(row).table[row][logical.long()]
        assert torch.equal(held.selected[row, :, :count].cpu(), physical)
        return logical


def make_scene(
    requests: list[Request],
    heads: int = 2,
    group: int = 4,
    dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    unit: int = 16,
    page: int = 64,
    reduction: Reduction = Reduction.MAX_SOFTMAX,
    seed: int = 0,
) -> Scene:
    """Requests at shuffled pages of a pool; no unit has a stamp yet."""
    lengths = [request.length for request in requests]
    paged = make_batch(lengths, heads, group, dim, dtype, page, seed)
    nobody = torch.full((page, heads, dim), torch.nan, dtype=dtype)
    paged = replace(
        paged, keys=torch.cat((nobody, paged.keys)), values=torch.cat((nobody, paged.values)),
        table=paged.table + 1,
    )  # fmt: skip
    width = max(-(-n // unit) for n in lengths)
    places = torch.randperm(len(requests) + 3)[: len(requests)]
    req_to_token = torch.full((len(requests) + 3, width * unit), POISON, dtype=torch.int32)
    table = torch.full((len(requests), width), POISON, dtype=torch.int32)
    for row, length in enumerate(lengths):
        slots = paged.slots(row)
        req_to_token[places[row], :length] = slots.int()
        table[row, : -(-length // unit)] = (slots[::unit] // unit).int()
    batch = replace(paged, table=table, unit_size=unit)
    pool_units = len(paged.keys) // unit
    finest = unit >> max(request.finer for request in requests)
    selected = max(-(-request.budget // finest) for request in requests)
    chunks = any(request.formula == "landmark" for request in requests)
    shape = StepShape(
        len(requests), len(req_to_token), width, min(width * unit // finest, selected), pool_units,
        heads, group, dim, dim, unit, page, dtype, DEVICE,
        FORMULAS | {"landmark"} if chunks else FORMULAS, reduction, None, finest,
    )  # fmt: skip
    sealed = torch.zeros(pool_units, dtype=torch.bool)
    fields = {name: torch.full((pool_units, heads, 2, dim), torch.nan, dtype=dtype)
              for name in SUMMARIES}  # fmt: skip
    for name, summary in OF_CHUNKS.items() if chunks else ():
        extents = (pool_units * unit // CHUNK, heads, 1, summary.width or dim)
        fields[name] = torch.full(extents, torch.nan, dtype=dtype)
    if any(request.formula == "own" for request in requests):
        own = ALL["own"]
        extents = (pool_units, heads, *own.shape(dim))
        fields["own"] = torch.full(extents, own.poison, dtype=own.dtype or dtype)
        shape = replace(shape, own=own, formulas=shape.formulas | {"own"})
    return Scene(requests, batch, shape, places, req_to_token, sealed, fields)
