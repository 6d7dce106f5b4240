"""The attention backend: dense prefill, sparse decode, everything else delegated."""

import logging
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from ..config import ServerOptions
from ..ops import load_ops
from ..page_metadata import PageMetadata, StepSeal
from ..types import ScoreInputs, Selection
from .flags import options_of
from .held_scores import HeldScores
from .kv_pool import listen_to_allocator
from .observer import StepObserver
from .planner import RowGroup, StepPlan
from .request_table import activate
from .support import check_runner, dense_reason

logger = logging.getLogger(__name__)


def create_backend(runner: Any) -> "SparseKVBackend":
    """Factory that SGLang calls for `--attention-backend sparsekv`."""
    options = options_of(runner.server_args)
    assert options is not None, "the sparsekv backend is created only when it was chosen"
    return SparseKVBackend(runner, options)


def dense_backend(runner: Any) -> AttentionBackend:
    """SGLang's own dense backend of the device."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    name = "torch_native" if str(runner.device) == "cpu" else "flashinfer"
    return ATTENTION_BACKENDS[name](runner)


class SparseKVBackend(AttentionBackend):  # type: ignore[misc]
    """Holds SGLang's dense backend and takes decode from it.

    A step is planned once (`init_forward_metadata`), then every layer writes K and V, summarises
    the units that fill, scores, selects and attends.
    """

    def __init__(self, runner: Any, options: ServerOptions) -> None:
        super().__init__()
        self.options = options
        self.on_cpu = str(runner.device) == "cpu"
        device = options.device
        if device == "auto":
            device = "cpu" if self.on_cpu else "reference"
        self.ops = load_ops(device)
        check_runner(runner, options.methods, self.ops)
        self.dense = dense_backend(runner)
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.metadata: PageMetadata = self.token_to_kv_pool.page_metadata
        self.geometry = self.metadata.geometry
        self.num_layers = self.metadata.layout.num_layers
        self.table = activate(options)
        self.seal = StepSeal(self.metadata, self.ops)
        self.metadata.poison = options.check != "off"
        self.held = HeldScores()
        self.observer = StepObserver(options, self.metadata, self.table, runner)
        listen_to_allocator(self.seal.hand_out)
        self.plan: StepPlan | None = None
        self._extend_rows: list[tuple[slice, torch.Tensor]] = []
        self._decode_tokens: torch.Tensor | None = None
        self.observer.log_start(self.ops.name, self.on_cpu)

    # -- what the wrapped dense backend answers ---------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name == "dense":
            raise AttributeError(name)
        return getattr(self.dense, name)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length of padded rows."""
        return 1

    def support_triton(self) -> bool:
        """As the dense backend."""
        return bool(self.dense.support_triton())

    # -- once per step ---------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan a step: which rows decode, what each reads, which units fill."""
        self.dense.init_forward_metadata(forward_batch)
        self.plan = None
        self._extend_rows, self._decode_tokens = [], None
        mode = forward_batch.forward_mode
        if mode.is_idle():
            return
        rows = forward_batch.req_pool_indices.cpu().numpy().astype(np.int64)
        lengths = _host_lengths(forward_batch)
        if mode.is_decode():
            self._plan_decode(rows, lengths)
        else:
            self._plan_extend(forward_batch, rows, lengths)
        needed = self.plan.needed_units() if self.plan else torch.empty(0, dtype=torch.int64)
        self.seal.begin_step(forward_batch.out_cache_loc, needed)
        self.observer.begin_step(self.plan, self.seal.pending)

    def _plan_decode(self, rows: Any, lengths: Any) -> None:
        entries = [self.table.entry(int(row)) for row in rows]
        self.plan = StepPlan(
            rows,
            lengths,
            [entry.options for entry in entries],
            self.req_to_token_pool.req_to_token,
            self.geometry,
        )
        for row, entry, length in zip(rows.tolist(), entries, lengths.tolist(), strict=True):
            self.held.begin_step(row, entry.serial, length, entry.options.reselect_every)

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
                if not entry.extended:
                    entry.extended = True
                    self.observer.prefix_hit(slots[: int(lengths[i]) - new])
        if decode.any():
            self._decode_tokens = torch.from_numpy(ends[decode] - 1)
            self._plan_decode(rows[decode], lengths[decode])

    # -- once per layer --------------------------------------------------------------------

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sparse decode of every row."""
        if kwargs or dense_reason(layer):
            out = self.dense.forward_decode(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
            self._summarise(layer)
            return out
        self._write(k, v, layer, forward_batch, save_kv_cache)
        self._summarise(layer)
        out = self._decode(q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim), layer)
        return out.reshape(-1, layer.tp_q_head_num * layer.v_head_dim)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Dense prefill; decode rows of a mixed batch go the way of decode."""
        if not self.on_cpu or kwargs or dense_reason(layer):
            out = self.dense.forward_extend(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
            self._summarise(layer)
            rows = out.view(-1, layer.tp_q_head_num, layer.v_head_dim)
        else:
            self._write(k, v, layer, forward_batch, save_kv_cache)
            self._summarise(layer)
            rows = self._prefill(q.view(-1, layer.tp_q_head_num, layer.qk_head_dim), layer)
        if self._decode_tokens is not None and not (kwargs or dense_reason(layer)):
            queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)[self._decode_tokens]
            rows[self._decode_tokens] = self._decode(queries, layer)
        return rows.reshape(rows.shape[0], -1)

    def _write(
        self,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
    ) -> None:
        if save_kv_cache and k is not None and v is not None:
            where = KVWriteLoc.for_batch(forward_batch)
            self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)

    def _summarise(self, layer: Any) -> None:
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        self.seal.summarise(self._local(layer), keys)

    def _prefill(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        out = q.new_zeros(q.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        q = q.to(keys.dtype)
        for tokens, slots in self._extend_rows:
            out[tokens] = self.ops.prefill(q[tokens], keys, values, slots, layer.scaling)
        return out

    def _decode(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        """q `[rows, Hq, D]` -> `[rows, Hq, Dv]`, group by group."""
        assert self.plan is not None
        heads = layer.tp_k_head_num
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        shape = (q.shape[0], heads, layer.tp_q_head_num // heads, layer.qk_head_dim)
        grouped = q.to(keys.dtype).view(shape)
        groups = self.plan.groups(self._local(layer))
        out: torch.Tensor | None = None
        for group in groups:
            queries = group.take(grouped)
            table = self._table(group, queries, keys, layer)
            part, _ = self.ops.attend(
                queries,
                keys,
                values,
                table,
                group.counts,
                group.tails,
                layer.scaling,
                self.geometry.unit_size,
            )
            if group.whole:
                out = part
            else:
                out = (
                    grouped.new_empty(*grouped.shape[:3], layer.v_head_dim) if out is None else out
                )
                out[group.index] = part
        assert out is not None
        self.observer.end_layer(self._local(layer), keys)
        return out.view(q.shape[0], layer.tp_q_head_num, layer.v_head_dim).to(q.dtype)

    def _table(
        self, group: RowGroup, q: torch.Tensor, keys: torch.Tensor, layer: Any
    ) -> torch.Tensor:
        """Physical units `[rows, H, n]` that the group reads in this layer."""
        if group.method is None:
            table = group.candidates.unit_table
            self.observer.dense(self._local(layer), group)
            return table[:, None, :].expand(-1, q.shape[1], -1)
        scores = self._scores(group, q, keys, layer)
        selection: Selection = self.ops.select(
            scores, group.candidates, group.num_units, group.counts
        )
        self.observer.selected(self._local(layer), group, selection)
        return selection.physical

    def _scores(
        self, group: RowGroup, q: torch.Tensor, keys: torch.Tensor, layer: Any
    ) -> torch.Tensor:
        """Scores `[rows, H, U]`: held ones where a row does not reselect, else the method's."""
        assert group.method is not None and self.plan is not None
        local = self._local(layer)
        rows = self.plan.rows[group.index.cpu().numpy()].tolist()
        held = [i for i, row in enumerate(rows) if self.held.holds(row, local)]
        if len(held) == len(rows):
            width = group.candidates.unit_table.shape[1]
            scores = q.new_empty(len(rows), q.shape[1], width, dtype=torch.float32)
        else:
            summary = group.method.summary
            fields = self.metadata.fields(summary.name, local) if summary else None
            inputs = ScoreInputs(
                q,
                keys,
                fields,
                group.candidates,
                layer.scaling,
                self.options.reduction,
                self.geometry.unit_size,
            )
            scores = group.method.score(self.ops, inputs)
        for i, row in enumerate(rows):
            if i in held:
                self.held.load(row, local, scores[i])
            else:
                self.held.store(row, local, scores[i])
        return scores

    def _local(self, layer: Any) -> int:
        """Layer counted from this rank's first."""
        return int(layer.layer_id - self.token_to_kv_pool.start_layer)


def _host_lengths(forward_batch: Any) -> Any:
    lengths = forward_batch.seq_lens_cpu
    if lengths is None:
        lengths = forward_batch.seq_lens.cpu()
    return lengths.numpy().astype(np.int64)
