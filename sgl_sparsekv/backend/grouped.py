"""Decode planned on the host: rows that read alike go through the ops of a device together.

For CPUs, and for the reference kernels on any device: shapes follow the step's data, so no step can
be captured in a CUDA graph.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from ..config import ServerOptions
from ..errors import UnsupportedSetup
from ..ops import Ops, PrefillOps
from ..page_metadata import Cache, RowSegments, StepSeal
from .attention import SparseKVBackend, host_lengths
from .choosing import Chooser, GroupChoice
from .held_scores import HeldScores
from .kv_pool import listen_to_allocator
from .planner import RowGroup, StepPlan
from .segment_indexes import SegmentIndexes
from .telemetry_step import StepTelemetry
from .views.packing import Packing
from .views.short_memory import activate_packing
from .views.step_views import StepViews


class GroupedBackend(SparseKVBackend):
    """A step is planned once, then every layer summarises, scores, selects and attends by group.

    Attributes:
        plan: of the step's decode rows; None when no row decodes.
        telemetry: watches the rows of that plan that asked for it.
    """

    telemetry: StepTelemetry

    def __init__(self, runner: Any, options: ServerOptions, ops: Ops) -> None:
        super().__init__(runner, options, ops)
        self.seal = StepSeal(self.metadata, self.ops)
        self.metadata.poison = options.check != "off"
        self.indexes = SegmentIndexes(self.metadata, self.ops, options)
        self.held = HeldScores()
        self.views = StepViews(self.layers)
        activate_packing(self._packing())
        listen_to_allocator(self.seal.hand_out)
        self.plan: StepPlan | None = None
        self._extend_rows: list[tuple[slice, torch.Tensor]] = []
        self._decode_tokens: torch.Tensor | None = None

    def _packing(self) -> Packing | None:
        """What gives memory back, where one process decides alone what is left over."""
        from sglang.srt.runtime_context import get_parallel

        parallel = get_parallel()
        several = parallel.tp_size > 1 or parallel.pp_size > 1
        if several and self.options.admit_packed:
            raise UnsupportedSetup(
                "admit_packed must be false with several ranks: each keeps other tokens, so none "
                "can give pages back"
            )
        if several or not self.options.pack_views:
            return None
        return Packing(self.table, self.views, self.token_to_kv_pool, self.observer.metrics)

    # -- once per step ---------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan a step: which rows decode, what each reads, which units fill."""
        self.dense.init_forward_metadata(forward_batch)
        self.plan = None
        self._extend_rows, self._decode_tokens = [], None
        self.views.begin_step()
        mode = forward_batch.forward_mode
        if mode.is_idle():
            return
        rows = forward_batch.req_pool_indices.cpu().numpy().astype(np.int64)
        lengths = host_lengths(forward_batch)
        if mode.is_decode():
            self._plan_decode(rows, lengths)
        else:
            self._plan_extend(forward_batch, rows, lengths)
        needed = self.plan.needed_units() if self.plan else torch.empty(0, dtype=torch.int64)
        self.seal.begin_step(forward_batch.out_cache_loc, needed)
        self._find_records(forward_batch, rows, lengths)
        self.observer.begin_step(self.plan, self.seal.pending.numel())

    def _plan_decode(self, rows: Any, lengths: Any) -> None:
        entries = [self.table.entry(int(row)) for row in rows]
        self.plan = StepPlan(
            rows,
            lengths,
            [entry.options for entry in entries],
            self.req_to_token_pool.req_to_token,
            self.geometry,
            self.views.narrowed(entries, lengths),
        )
        self.views.decode(entries, lengths, self.plan)
        self.telemetry = StepTelemetry(
            self.plan,
            [entry.telemetry if entry.watched else None for entry in entries],
            self.ops,
            self.layers.last_ours,
            timed=self.on_cpu,
        )
        for row, entry, length in zip(rows.tolist(), entries, lengths.tolist(), strict=True):
            owner = (entry.serial, entry.retractions)
            self.held.begin_step(row, owner, length, entry.options.reselect_every)

    def _plan_extend(self, forward_batch: Any, rows: Any, lengths: Any) -> None:
        decode = self.table.is_decode(rows)
        ends = np.cumsum(forward_batch.extend_seq_lens_cpu)
        table = self.req_to_token_pool.req_to_token
        for i, (end, new) in enumerate(
            zip(ends.tolist(), forward_batch.extend_seq_lens_cpu, strict=True)
        ):
            if not decode[i]:
                slots = table[int(rows[i]), : int(lengths[i])].long()
                self._extend_rows.append((slice(end - new, end), slots))
                entry = self.table.entry(int(rows[i]))
                self.views.extend(entry, slice(end - new, end), slots)
                if not entry.extended:
                    entry.extended = True
                    self.observer.prefix_hit(slots[: int(lengths[i]) - new])
        if decode.any():
            self._decode_tokens = torch.from_numpy(ends[decode] - 1)
            self._plan_decode(rows[decode], lengths[decode])

    def _find_records(self, forward_batch: Any, rows: Any, lengths: Any) -> None:
        """Which segment records the rows read, and which are to be built in this step."""
        if not self.indexes:
            return
        decodes = forward_batch.forward_mode.is_decode()
        new = [1] * len(rows) if decodes else forward_batch.extend_seq_lens_cpu
        table = self.req_to_token_pool.req_to_token
        slots = [
            table[row, : 0 if self._is_packed(row) else length]
            for row, length in zip(rows.tolist(), lengths, strict=True)
        ]
        for methods, index in self.indexes.groups():
            rest = index is self.indexes.rest
            found = index.begin_step(self._segments(rows, slots, new, self._reading(methods, rest)))
            self.observer.indexed(methods[0] if methods else "estimate", index.records)
            if self.plan is not None:
                place = {row: i for i, row in enumerate(rows.tolist())}
                records = found[[place[row] for row in self.plan.rows.tolist()]]
                self.plan.records.update(dict.fromkeys(methods, records))
                self.plan.rest = records if rest else self.plan.rest

    def _is_packed(self, row: int) -> bool:
        """Whether a row holds no segment as it was written: what is left was moved together."""
        view = self.table.entry(row).view
        return view is not None and view.packed is not None

    def _reading(self, methods: Sequence[str], rest: bool) -> set[int]:
        """Rows of the plan that read segment records of one of the methods, or estimate by them."""
        if self.plan is None:
            return set()
        reads = [self.plan.reads(method) for method in methods]
        reads += [self.plan.estimating] if rest else []
        return set(self.plan.rows[np.logical_or.reduce(reads)].tolist())

    @staticmethod
    def _segments(
        rows: Any, slots: list[torch.Tensor], new: Any, readers: set[int]
    ) -> list[RowSegments]:
        return [
            RowSegments(own, max(0, len(own) - int(n)), row in readers)
            for own, n, row in zip(slots, new, rows.tolist(), strict=True)
        ]

    # -- once per layer --------------------------------------------------------------------

    @property
    def prefills(self) -> bool:
        """On a CPU: SGLang's own recomputes the whole context for every chunk."""
        return self.on_cpu

    def _summarise(self, layer: Any) -> None:
        cache = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        self.seal.summarise(self._local(layer), cache[0])
        for index in self.indexes:
            index.summarise(self._local(layer), cache)

    def _prefill(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        out = q.new_zeros(q.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        q = q.to(keys.dtype)
        ops = cast(PrefillOps, self.ops)
        for tokens, slots in self._extend_rows:
            out[tokens] = ops.prefill(q[tokens], keys, values, slots, layer.scaling)
        return out

    def _extended(self, q: torch.Tensor, layer: Any) -> None:
        keys, _ = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        grouped = self._grouped(q.to(keys.dtype), layer)
        self.views.extended(layer.layer_id, grouped, keys, layer.scaling)

    @staticmethod
    def _grouped(q: torch.Tensor, layer: Any) -> torch.Tensor:
        """Queries `[n, Hq, D]` by KV head: `[n, H, G, D]`."""
        heads = layer.tp_k_head_num
        return q.view(len(q), heads, layer.tp_q_head_num // heads, layer.qk_head_dim)

    def _decode(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        """q `[rows, Hq, D]` -> `[rows, Hq, Dv]`, group by group."""
        assert self.plan is not None
        cache = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        keys = cache[0]
        grouped = self._grouped(q.to(keys.dtype), layer)
        out: torch.Tensor | None = None
        for group in self.plan.groups(layer.layer_id):
            part = self._read(group, group.take(grouped), layer)
            if group.whole:
                out = part
            else:
                out = (
                    grouped.new_empty(*grouped.shape[:3], layer.v_head_dim) if out is None else out
                )
                out[group.index] = part
        assert out is not None
        self.views.decoded(layer.layer_id, grouped, keys, layer.scaling)
        self.observer.end_layer(self._local(layer), keys)
        for index in self.indexes:
            self.observer.check_records(index, self._local(layer), cache)
        return out.view(q.shape[0], layer.tp_q_head_num, layer.v_head_dim).to(q.dtype)

    def _read(self, group: RowGroup, q: torch.Tensor, layer: Any) -> torch.Tensor:
        """Attention of one group: q `[rows, H, G, D]` -> `[rows, H, G, Dv]`."""
        number = layer.layer_id
        cache: Cache = self.token_to_kv_pool.get_kv_buffer(number)
        if group.view:
            return self._read_views(group, q, cache, layer)
        if group.method is None:
            return self._read_everything(group, q, cache, layer)
        how = (group.tails, layer.scaling, group.unit_size)
        self.telemetry.selecting()
        choice = self._choice(group, q, cache[0], layer)
        selection, rest = choice.made()
        self.telemetry.selected()
        self.observer.selected(number, group, selection)
        self.telemetry.attending()
        if rest is None:
            physical, counts = selection.physical, selection.counts
            part, lse = self.ops.attend(q, *cache, physical, counts, *how)
        else:
            part, lse = self.ops.attend_all(q, cache, selection, *how, rest)
        self.telemetry.attended(group)
        mass = self.telemetry.cover(number, group, q, cache, layer.scaling, lse)
        if mass is not None:
            self.observer.covered(group.method.name, mass)
            self.telemetry.certify(number, group, selection, choice.inputs())
        return part

    def _read_everything(
        self, group: RowGroup, q: torch.Tensor, cache: Cache, layer: Any
    ) -> torch.Tensor:
        """As `_read`, of rows that are dense in this layer."""
        table = group.candidates.unit_table[:, None, :].expand(-1, q.shape[1], -1)
        how = (group.tails, layer.scaling, group.unit_size)
        self.telemetry.selecting()
        self.observer.dense(layer.layer_id, group)
        self.telemetry.attending()
        part, _ = self.ops.attend(q, *cache, table, group.counts, *how)
        self.telemetry.attended(group)
        return part

    def _read_views(
        self, group: RowGroup, q: torch.Tensor, cache: Cache, layer: Any
    ) -> torch.Tensor:
        """As `_read`, of rows that read what their views list."""
        assert group.method is not None
        self.telemetry.selecting()
        lists = self.views.lists(layer.layer_id, group.index.tolist())
        self.telemetry.selected()
        self.observer.listed(layer.layer_id, group, lists)
        self.telemetry.attending()
        part, lse = self.ops.attend_lists(q, *cache, lists, layer.scaling)
        self.telemetry.attended(group)
        mass = self.telemetry.cover(layer.layer_id, group, q, cache, layer.scaling, lse)
        if mass is not None:
            self.observer.covered(group.method.name, mass)
        return part

    def _choice(
        self, group: RowGroup, q: torch.Tensor, keys: torch.Tensor, layer: Any
    ) -> GroupChoice:
        assert self.plan is not None
        by = Chooser(self.ops, self.metadata, self.indexes, self.held, self.options.reduction)
        rows = self.plan.rows[group.index.cpu().numpy()].tolist()
        return GroupChoice(by, group, rows, q, keys, layer.scaling, self._local(layer))
