"""Decode as a server runs it: static buffers, lengths on the device, three launches per layer.

    forget   stamps of pages that start anew                     once per step
    begin    plan, table of units, what is not summarised yet    once per step
    decode   score + summarise, select, attend                   per layer
    measure  what of its attention a row read                    per layer, in graphs that measure
    end      stamp what was summarised                           once per step

Nothing here waits for the device or allocates, so all of it can be recorded in a CUDA graph.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

import triton
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.types import Reduction, StepShape

if TYPE_CHECKING:
    from sgl_sparsekv.routes import PagedAttend

from .attend import attend_kernel
from .buffers import StepBuffers, allocate, leaves_ranks, most_scored
from .cluster_ops import ClusterRows, rest_parts
from .coded import Arrays, CodedRows
from .cover_ops import CoverRows
from .cuda.select import constants_for, launch_select
from .held_ops import HeldRows
from .launch import check_shape, early, interpreted, processors, selects_by_cuda, splits, tuning
from .level_ops import LevelRows
from .mass import mass_kernel
from .narrow_ops import narrow_and_place
from .outliers import outliers_kernel
from .planes import Planes, planes_of
from .score import score_kernel
from .select import select_kernel
from .spec import FORMULAS, OUTLIER_SHARE, SEGMENT_BOUNDS, SPREAD
from .step import begin_kernel, forget_kernel, seal_kernel
from .summarise import summarise_kernel
from .tuning import (
    SELECT_CHUNK,
    SELECT_PARTS,
    SELECT_REGISTERS,
    SELECT_WARPS,
    VIEW_STAGES,
    attend_registers,
    rows_together,
    score_chunks,
    select_threads,
)

OF_16_BITS = (
    "methods that bring kernels for page metadata cannot be used with a float32 cache on a GPU: "
    "their functions are compiled for 16 bits; use --dtype bfloat16 or float16"
)
BUILT_IN = ("min_max", "mean_std", "landmark", "misfit")
"""Page metadata that there are kernels for."""
BEGIN_UNITS = 512
"""Units that one program of `begin_kernel` lists."""
FORGET_SLOTS = 256
SEAL_UNITS = 1024
WORKERS = 16
"""Programs per KV head, at least, that summarise pending units beside the scoring ones."""


def fields_of(
    keys: torch.Tensor, fields: Mapping[str, torch.Tensor], own: Planes | None
) -> tuple[tuple[int, ...], dict[str, Any], list[torch.Tensor]]:
    """Page metadata as launches take it; K stands in for what is not there.

    Args:
        keys: `[slots, H, D]`.
        fields: by name of summary; one that is not built in is that of `own`.
        own: planes that a method brings.

    Returns:
        strides of units, heads and planes, built in and own; which fields there are, and the
        functions of own ones; the fields.
    """
    brought = [field for name, field in fields.items() if name not in BUILT_IN]
    planes = [fields.get(name, keys) for name in BUILT_IN]
    wide = fields.get("min_max", fields.get("mean_std"))
    strides = keys[:, :, None].stride() if wide is None else wide.stride()
    field = brought[0] if brought else keys[:, :, None]
    kinds: dict[str, Any] = {f"HAS_{name.upper()}": name in fields for name in BUILT_IN[:3]}
    assert len(brought) == (own is not None), "one summary at most brings its planes"
    kinds |= {"HAS_OWN": bool(brought), "WRITE": own and own.write}
    return (*strides[:3], *field.stride()[:3]), kinds, [*planes, field]


class FusedDecode:
    """See `sgl_sparsekv.fused_ops.FusedDecode`.

    Raises:
        UnsupportedSetup: head sizes or the cache's type have no kernel, or planes that a method
            brings are not there, or not for such a cache.
    """

    def __init__(self, shape: StepShape, watched: bool = False) -> None:
        check_shape(shape.head_dim, shape.v_head_dim, shape.dtype)
        self.shape = shape
        self.tuning = tuning(shape.head_dim, shape.dtype)
        self.own = None if shape.own is None else planes_of(shape.own)
        if self.own is not None and shape.dtype is torch.float32 and not interpreted():
            raise UnsupportedSetup(OF_16_BITS)
        self.buffers: StepBuffers = allocate(shape, self.tuning.score_units, watched)
        self.watched = watched
        self._units_per_page = shape.page_size // shape.unit_size
        self._blocks = self.buffers.parts.shape[2]
        self._scored = triton.cdiv(most_scored(shape), self.tuning.score_units)
        self._finer = shape.most_ranked > shape.max_units
        self._ranked, self._covers = leaves_ranks(shape), bool(shape.covered)
        held = self.buffers.records
        self.coded = None if held is None else CodedRows(shape, held)
        levels = self.buffers.levels
        cover = self.buffers.cover
        self.cover = None if cover is None else CoverRows(shape, self.tuning, cover)
        self.levels = None if levels is None else LevelRows(shape, self.tuning, levels)
        clusters = self.buffers.clusters
        self.clusters = None if clusters is None else ClusterRows(shape, clusters)
        holds = self.buffers.holds
        self.held = None if holds is None else HeldRows(shape, holds)

    @property
    def nbytes(self) -> int:
        """Bytes of static buffers."""
        return self.buffers.nbytes

    def formula(self, name: str) -> int:
        """Number of a formula, for the table of options."""
        return FORMULAS[name]

    def forget(self, sealed: torch.Tensor, slots: torch.Tensor) -> None:
        """See `FusedDecode.forget`."""
        if slots.numel():
            forget_kernel[(triton.cdiv(slots.numel(), FORGET_SLOTS),)](
                slots, sealed.view(torch.uint8), self.buffers.pending_count, self.buffers.shared,
                slots.numel(), self.buffers.shared.numel(), PAGE=self.shape.page_size,
                UNITS_PER_PAGE=self._units_per_page, BLOCK=FORGET_SLOTS,
            )  # fmt: skip
            if self.coded is not None:
                self.coded.forget(slots)

    def arrange(self, order: torch.Tensor) -> None:
        """See `FusedDecode.arrange`."""
        self.buffers.order[: order.numel()].copy_(order, non_blocking=True)

    def mark(self, sampled: torch.Tensor) -> None:
        """See `FusedDecode.mark`."""
        self.buffers.sampled[: sampled.numel()].copy_(sampled, non_blocking=True)

    def begin(
        self,
        sealed: torch.Tensor,
        request_rows: torch.Tensor,
        lengths: torch.Tensor,
        req_to_token: torch.Tensor,
    ) -> None:
        """See `FusedDecode.begin`."""
        held, rows = self.buffers, request_rows.numel()
        views = held.views
        whose = (
            (held.order,) * 3 if views is None else (views.of_request, views.records, views.viewed)
        )
        begin_kernel[(rows, triton.cdiv(self.shape.max_units, BEGIN_UNITS))](
            request_rows, lengths, req_to_token, held.options, held.ratios, held.plan, held.table,
            sealed.view(torch.uint8), held.pending, held.pending_count, held.order, held.shared,
            *whose, *self._cover("asked", "goals"), held.table.stride(0), held.pending.numel(),
            held.plan.stride(0),
            req_to_token.stride(0), held.options.stride(0), whose[1].stride(0),
            UNIT=self.shape.unit_size, UNITS_PER_PAGE=self._units_per_page, BLOCK=BEGIN_UNITS,
            ROWS=self._together(rows), VIEWS=views is not None, COVERS=self._covers,
        )  # fmt: skip
        if self.coded is not None:
            self.coded.begin(request_rows, lengths, req_to_token)
        if self.held is not None:
            self.held.plan(request_rows, lengths, held)

    def summarise(self, keys: torch.Tensor, fields: Mapping[str, torch.Tensor]) -> None:
        """See `FusedDecode.summarise`."""
        if not fields:
            return
        held, (strides, kinds, planes) = self.buffers, fields_of(keys, fields, self.own)
        summarise_kernel[(4 * WORKERS, keys.shape[1])](
            keys, *planes, held.pending, held.pending_count, held.pending.numel(),
            *keys.stride()[:2], *strides, **kinds, UNIT=self.shape.unit_size,
            DIM=self.shape.head_dim,
        )  # fmt: skip

    def build(
        self,
        name: str,
        jobs: torch.Tensor,
        req_to_token: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        pointers: tuple[torch.Tensor, torch.Tensor],
        arrays: Arrays,
        skip: int,
    ) -> None:
        """See `FusedDecode.build`."""
        assert self.coded is not None, "no served method reads records"
        self.coded.build(name, jobs, req_to_token, cache, pointers, arrays, skip)

    def decode(
        self,
        sealed: torch.Tensor,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        scale: float,
        paged: "PagedAttend | None" = None,
        records: Mapping[str, Arrays] = {},
    ) -> torch.Tensor:
        """See `FusedDecode.decode`."""
        if self.cover is not None:
            self.cover.know(layer, q, keys, self.buffers, scale)
        if self._scored:
            self._score(sealed, layer, q, keys, fields, scale)
        if "misfit" in fields:
            self._mark_outliers(layer, q.shape[0], fields["misfit"])
        if self.coded is not None:
            self.coded.rank(layer, q, keys, self.buffers, scale, records)
        if self.levels is not None:
            how = (fields["min_max"], records[SEGMENT_BOUNDS]["planes"], self.buffers, scale)
            self.levels.rank(layer, q, keys, *how)
        if self.clusters is not None:
            arrays = records[self.clusters.name]
            self.clusters.rank(layer, q, keys, arrays, self.buffers, scale)
        if self.cover is not None:
            self.cover.choose(layer, q, keys, self.buffers, scale)
        self._select(layer, q.shape[0], paged)
        if self.held is not None:
            self.held.choose(layer, q.shape[0], self.buffers, self.watched)
        if self.clusters is not None and self.shape.estimates:
            self.clusters.rest(layer, q, arrays, self.buffers, scale)
        if paged is not None:
            return paged.run(q.contiguous(), keys, values, scale, lse=False)[0]
        return self._attend(layer, q, keys, values, scale)

    def measure(self, layer: int, q: torch.Tensor, keys: torch.Tensor, scale: float) -> None:
        """See `FusedDecode.measure`."""
        held, shape, parts = self.buffers, self.shape, splits(self.shape.heads)
        measured, plan = shape.measured, held.plan
        mass_kernel[(parts, shape.heads, q.shape[0])](
            q, keys, held.table, held.sampled, plan[3], plan[5], plan[6], plan[7], held.split_lse,
            held.tickets, held.lse, held.masses, scale, layer, layer - measured.start,
            len(measured), *q.stride()[:3], *keys.stride()[:2], held.table.stride(0),
            HEADS=shape.heads, GROUP=shape.group, DIM=shape.head_dim, UNIT=shape.unit_size,
            SPLITS=parts, TOKENS=2 * self.tuning.attend_tokens, STAGES=self.tuning.attend_stages,
            UPCAST=interpreted(), FINER=self._finer, num_warps=self.tuning.attend_warps,
            **early(),
        )  # fmt: skip

    def end(self, sealed: torch.Tensor) -> None:
        """See `FusedDecode.end`."""
        held = self.buffers
        seal_kernel[(1,)](
            held.pending, held.pending_count, sealed.view(torch.uint8), held.pending.numel(),
            BLOCK=SEAL_UNITS,
        )  # fmt: skip
        if self.held is not None:
            self.held.commit()

    def _cover(self, *names: str) -> list[torch.Tensor]:
        """Buffers of rows that ask for a coverage; others stand in where none may."""
        cover = self.buffers.cover
        return [self.buffers.order if cover is None else getattr(cover, name) for name in names]

    def _together(self, rows: int) -> int:
        return rows_together(rows, self.shape.group, self.tuning.most_lanes)

    def _score(
        self,
        sealed: torch.Tensor,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        fields: Mapping[str, torch.Tensor],
        scale: float,
    ) -> None:
        held, (strides, kinds, planes) = self.buffers, fields_of(keys, fields, self.own)
        rows, heads, group, dim = q.shape
        together = self._together(rows)
        groups = triton.cdiv(rows, together)
        chunks = score_chunks(rows, heads, self._scored, together, processors())
        workers = triton.cdiv(WORKERS, groups) if fields else 0
        score_kernel[(groups, heads, chunks + workers)](
            q, keys, *planes, held.pending, held.pending_count, held.table, held.order,
            held.shared, held.formulas, held.plan[1], held.plan[2], held.plan[6],
            *self._cover("goals"), held.logits, held.parts, scale, SPREAD, layer, rows, chunks,
            self._blocks, held.logits.shape[3],
            held.pending.numel(), *q.stride()[:3], *keys.stride()[:2], *strides,
            held.table.stride(0), **kinds, HAS_EXACT="exact" in self.shape.formulas,
            ESTIMATE=self.own and self.own.estimate,
            ROWS=together, GROUP=group, DIM=dim, UNIT=self.shape.unit_size,
            BLOCK=self.tuning.score_units, STAGES=self.tuning.score_stages, UPCAST=interpreted(),
            COVERS=self._covers,
            num_warps=self.tuning.score_warps, maxnreg=self.tuning.score_registers, **early(),
        )  # fmt: skip

    def _mark_outliers(self, layer: int, rows: int, misfits: torch.Tensor) -> None:
        held, shape = self.buffers, self.shape
        chunks = triton.cdiv(shape.most_ranked, SELECT_CHUNK)
        outliers_kernel[(chunks, shape.heads, rows)](
            misfits, held.table, held.formulas, *held.plan[1:5], *held.plan[6:8], held.logits,
            held.best, held.tickets, layer, OUTLIER_SHARE, held.logits.shape[3],
            held.table.stride(0), GROUP=shape.group, CHUNK=SELECT_CHUNK, num_warps=SELECT_WARPS,
            maxnreg=SELECT_REGISTERS, **early(),
        )  # fmt: skip

    def _select(self, layer: int, rows: int, paged: "PagedAttend | None") -> None:
        held, shape, narrow = self.buffers, self.shape, self.buffers.narrow
        pages, offsets = held.selected, held.offsets
        if paged is not None:
            pages, offsets = paged.pages, paged.offsets
        mean, block = shape.reduction is Reduction.MEAN_SOFTMAX, self.tuning.score_units
        holds, read = held.holds, held.marks
        scores, rows_of = (held.logits, held.parts), (
            held.table, held.formulas, *held.plan[1:4], held.counts, held.plan[6],
        )  # fmt: skip
        numbers, sizes = (layer, self._blocks, held.logits.shape[3]), (
            shape.max_selected, held.table.stride(0),
        )  # fmt: skip
        scaled = 1 if paged is None else shape.unit_size * shape.heads
        special = self._finer or self._ranked or shape.estimates or holds is not None
        if selects_by_cuda(shape.max_units) and not special:
            constants = constants_for(shape.max_units, shape.group, block, mean, paged is not None)
            tensors = (*scores, *rows_of, pages, held.logical if self.watched else None, offsets)
            launch_select(constants, shape.heads, rows, tensors, (*numbers, *sizes, scaled))
            return
        chunks, rows_of = triton.cdiv(shape.most_ranked, SELECT_CHUNK), (*rows_of, held.plan[7])
        lists = (pages, held.logical, offsets)
        holding = None if holds is None else (holds.does, holds.drawn)
        bins = held.tickets if narrow is None else narrow.bins
        warps, registers = select_threads(shape.group, mean, narrow is not None)
        select_kernel[(chunks, shape.heads, rows)](
            *scores, held.ranks, *rows_of, *lists, held.best, bins, read, held.tickets,
            *self._cover("goals", "chosen"), *(holding or (bins, bins)), *numbers,
            held.ranks.shape[2], *sizes, read.stride(1), scaled, BLOCK=block, CHUNK=SELECT_CHUNK,
            PARTS=SELECT_PARTS, GROUP=shape.group, MEAN=mean, REDUCED=False,
            COPY_DENSE=paged is not None, LOGICAL=self.watched, FINER=self._finer,
            CODED=self._ranked, COUNTED=narrow is not None, MARKED=shape.estimates,
            COVERS=self._covers, HELD=holding is not None, num_warps=warps, maxnreg=registers,
            **early(),
        )  # fmt: skip
        if narrow is not None:
            how = (layer, sizes[0], scaled)
            (chosen,) = self._cover("chosen")
            told = (read if shape.estimates else None, chosen if self._covers else None, holding)
            narrow_and_place(
                narrow, held.best, held.tickets, rows_of, lists, *told, how, self.watched
            )

    def _attend(
        self,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        held, shape = self.buffers, self.shape
        rows, parts, views = q.shape[0], splits(shape.heads), held.views
        kept, nth, stages = (held.order,) * 4, layer, self.tuning.attend_stages
        if views is not None and shape.views is not None:
            kept = (views.viewed, views.records, views.kept, views.queries)
            nth, stages = layer - shape.views.first_layer, stages + VIEW_STAGES
        attend_kernel[(parts, shape.heads, rows)](
            q, keys, values, held.table, held.selected, held.offsets, held.plan[0], held.plan[3],
            held.plan[4], held.plan[5], held.plan[6], held.plan[7], held.plan[9], held.split_out,
            held.split_lse, held.tickets, held.out, held.lse, *kept, *self._cover("chosen"), scale,
            layer, nth, held.plan.stride(0), *q.stride()[:3], *keys.stride()[:2],
            *values.stride()[:2], held.table.stride(0), kept[1].stride(0), HEADS=shape.heads,
            GROUP=shape.group, DIM=shape.head_dim, VALUE_DIM=shape.v_head_dim,
            UNIT=shape.unit_size, SPLITS=parts, REST=rest_parts(shape),
            TOKENS=self.tuning.attend_tokens, STAGES=stages, UPCAST=interpreted(),
            VIEWS=views is not None, FINER=self._finer, COVERS=self._covers,
            num_warps=self.tuning.attend_warps,
            maxnreg=attend_registers(
                shape.head_dim, views is not None, self._finer, self._covers
            ),
            **early(),
        )  # fmt: skip
        return held.out[:rows]
