"""A layer of methods that read segment records, choose in finer units, or not in every step.

What one step needs of a server is made here: metadata of the pool, records built by the device, and
options of every request.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from sgl_sparsekv.kernels.triton.fused import FusedDecode
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.shapes import Scene
from bench.gpu.step import static_shape
from sgl_sparsekv.geometry import Geometry, ceil_div
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata import PageMetadata
from sgl_sparsekv.page_metadata.layout import KeyLayout
from sgl_sparsekv.selection import IndexOptions, SelectionMethod, load_method
from sgl_sparsekv.summaries import ResidualSummary, SegmentSummary
from sgl_sparsekv.types import HeldShape, RecordShape, StepShape

SPARE_TOKENS = 3
"""Tokens that requests are shorter than their tables: later steps have room to go on."""
BUILT_AT_ONCE = 64
"""Segments of a launch, as a server builds them."""
DEFAULT, SMALL = IndexOptions(), IndexOptions(128, 16, 128, 4, 3, 128, 4)
"""How segments are indexed by a server, and where contexts are too short for that."""


@dataclass(frozen=True)
class Reader:
    """How all requests of a step read.

    Attributes:
        method: what ranks.
        estimate: clusters answer for what is not read.
        coverage: share of attention that each KV head reads; 0: a budget alone.
        every: steps that a selection serves.
    """

    method: str
    estimate: bool = False
    coverage: float = 0.0
    every: int = 1

    def __str__(self) -> str:
        more = ["estimate"] * self.estimate + ["coverage"] * bool(self.coverage)
        return ", ".join([self.method, *more, *["held"] * (self.every > 1)])


READERS = (
    Reader("residual_pq", estimate=True), Reader("clusterkv"), Reader("pqcache"),
    Reader("shadowkv"), Reader("quest_two_level"), Reader("quest_two_level_exact"),
    Reader("quest", estimate=True), Reader("quest", coverage=0.9),
    Reader("clusterkv", coverage=0.9), Reader("quest", every=4), Reader("clusterkv", every=4),
    Reader("quest_int8"),
)  # fmt: skip
"""The default of a CPU first."""
FEWER = tuple(READERS[i] for i in (0, 3, 5, 7, 10, 11))
"""Those that together launch all there is."""


@dataclass
class MethodStep:
    """One decode step of all rows of a scene, by one method.

    Attributes:
        scene: the batch; its lengths leave `SPARE_TOKENS` of each table.
        reader: how rows read.
        fused: what runs.
        metadata: of the pool: fields by the reference, records by the device.
    """

    scene: Scene
    unit: int
    reader: Reader
    fused: FusedDecode
    metadata: PageMetadata

    @property
    def method(self) -> SelectionMethod:
        """What ranks."""
        return load_method(self.reader.method)

    @property
    def own(self) -> int:
        """Tokens of a unit that rows choose in."""
        return self.method.ranked_unit(self.unit)

    def begin(self, later: int = 0) -> None:
        """Plan the step in which requests are so many tokens longer."""
        scene = self.scene
        lengths, table = scene.lengths + later, scene.req_to_token
        self.fused.begin(self.metadata.sealed, scene.places, lengths, table)

    def decode(self, i: int) -> torch.Tensor:
        """One layer: `[rows, H, G, Dv]`."""
        scene, made = self.scene, self.metadata
        layer = i % len(scene.kv)
        fields = {summary.name: made.fields(summary.name, layer) for summary in made.summaries}
        records = {name: held.arrays[layer] for name, held in made.records.items()}
        how = (scene.extents.scale, None, records)
        return self.fused.decode(made.sealed, layer, scene.q, *scene.kv[layer], fields, *how)

    def attend(self, i: int) -> torch.Tensor:
        """The last launch of a layer, over what was chosen last."""
        scene, layer = self.scene, i % len(self.scene.kv)
        return self.fused._attend(layer, scene.q, *scene.kv[layer], scene.extents.scale)

    def end(self) -> None:
        """Behind the last layer."""
        self.fused.end(self.metadata.sealed)

    def build(self, gaps: bool = False) -> None:
        """Records of the first layer's whole segments, but every third with `gaps`."""
        scene, tables = self.scene, list[torch.Tensor]()
        for pool in self.scene.kv[0]:
            tables.append(torch.tensor([pool.data_ptr()], device=scene.device))
        for name, held in self.metadata.records.items():
            arrays = {key: array[:1] for key, array in held.stacked.items()}
            whole = self.jobs(held.summary)
            for jobs in (whole[whole[:, 1] % 3 != 1] if gaps else whole).split(BUILT_AT_ONCE):
                how = (scene.kv[0], (tables[0], tables[1]), arrays, 0)
                self.fused.build(name, jobs.clone(), scene.req_to_token, *how)

    def jobs(self, summary: SegmentSummary) -> torch.Tensor:
        """Every whole segment, int32 `[n, 3]`: row of the table, number, and room for a record."""
        whole = (self.scene.lengths // summary.segment_size).tolist()
        places = self.scene.places.tolist()
        made = [
            (p, nth, -1) for p, count in zip(places, whole, strict=True) for nth in range(count)
        ]
        return torch.tensor(made, dtype=torch.int32, device=self.scene.device).view(-1, 3)


def make_method_step(
    scene: Scene, unit: int, reader: Reader, kernels: TritonOps, units: int, index: IndexOptions,
    watched: bool = False,
) -> MethodStep:  # fmt: skip
    """Buffers, options and metadata of a scene; records are not built yet.

    Args:
        scene: the batch, of requests as long as their tables.
        unit: tokens per unit.
        reader: how rows read.
        kernels: what launches.
        units: width of the buffers.
        index: how segments are indexed.
        watched: keep logical units too.
    """
    scene = replace(scene, lengths=scene.lengths - SPARE_TOKENS)
    extents, layers, method = scene.extents, len(scene.kv), load_method(reader.method)
    kinds = list(kinds_of(reader, index))
    metadata = PageMetadata(
        Geometry(extents.page, unit), method.summaries,
        KeyLayout(layers, extents.heads, extents.dim, extents.dtype), scene.slots, scene.device,
        kinds,
    )  # fmt: skip
    fused = kernels.fused(shape_of(scene, unit, reader, units, metadata), watched=watched)
    own = method.ranked_unit(unit)
    row = [fused.formula(method.formula), extents.budget, 0, extents.sink, extents.window, 0,
           (unit // own).bit_length() - 1, int(reader.estimate)]  # fmt: skip
    held = fused.buffers
    held.options.copy_(torch.tensor(row, dtype=torch.int32).expand_as(held.options))
    if held.cover is not None:
        held.cover.asked.fill_(reader.coverage)
    if held.holds is not None:
        held.holds.asked[:, 0] = reader.every
        held.holds.asked[scene.places, 1] = number(scene)
        held.holds.asked[scene.places, 2] = 1 + number(scene)
    return MethodStep(scene, unit, reader, fused, metadata)


def kinds_of(reader: Reader, index: IndexOptions) -> Iterator[SegmentSummary]:
    """Records that rows read."""
    summary = load_method(reader.method).segments(index)
    if summary is not None:
        yield summary
    if reader.estimate and not isinstance(summary, ResidualSummary):
        residual = load_method("residual_pq").segments(index)
        assert residual is not None
        yield residual


def number(scene: Scene) -> torch.Tensor:
    """int32 `[rows]`: 0, 1, 2 ..."""
    return torch.arange(scene.shape.batch, dtype=torch.int32, device=scene.device)


def shape_of(
    scene: Scene, unit: int, reader: Reader, units: int, metadata: PageMetadata
) -> StepShape:
    """Extents of a server that serves this way of reading alone."""
    extents, layers, rows = scene.extents, len(scene.kv), scene.shape.batch
    method, pages = load_method(reader.method), scene.slots // extents.page
    own = method.ranked_unit(unit)
    budget = ceil_div(extents.budget, own) + 1
    base = static_shape(extents, rows, unit, units, metadata.num_units, scene.device)
    return replace(
        base, formulas=frozenset({method.formula}), finest=own, max_selected=units * (unit // own),
        records=tuple(
            RecordShape(held.summary, held.capacity, pages) for held in metadata.records.values()
        ),
        estimates=reader.estimate, covered=range(layers if reader.coverage else 0),
        held=HeldShape(rows, layers, 0, budget) if reader.every > 1 else None,
        own=next((s for s in metadata.summaries if s.kernels), None),
    )  # fmt: skip


def seal(step: MethodStep) -> None:
    """Summarise and stamp every full unit of the first layer, by the reference."""
    scene, made, ops = step.scene, step.metadata, load_ops("reference")
    table, full = scene.units(step.unit), scene.lengths // step.unit
    there = torch.arange(table.shape[1], device=scene.device)[None] < full[:, None] - 1
    units = table[there].unique()
    for summary in made.summaries:
        finer = made.geometry.finer(units, summary.tokens)
        ops.summarise(summary, scene.kv[0][0], made.fields(summary.name, 0), finer)
    made.seal(units)


def repeat(step: MethodStep) -> None:
    """Give all layers the records and fields of the first: times need no others."""
    made = step.metadata
    for held in made.records.values():
        for array in held.stacked.values():
            array[1:] = array[:1].clone()
    for summary in made.summaries:
        for layer in range(1, made.layout.num_layers):
            made.fields(summary.name, layer).copy_(made.fields(summary.name, 0))
