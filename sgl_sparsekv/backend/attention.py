"""The attention backend as SGLang sees it: dense prefill, sparse decode, the rest delegated."""

import logging
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from ..config import ServerOptions
from ..ops import Ops
from ..page_metadata import PageMetadata
from .layers import layers_of_all_stages
from .observer import StepObserver
from .request_table import activate
from .sharing import Sharing, activate_sharing
from .support import attention_layers, check_runner

logger = logging.getLogger(__name__)


DENSE_LIMITS = (
    "extend_dummy_seqs_capped_by_req_pool",
    "prefer_eager_mixed_prefill_under_dp_attention",
    "prefill_cuda_graph_default_max_seq_len",
    "prefill_cuda_graph_max_batch_size",
    "supports_prefill_cuda_graph_max_context_size",
)
"""What SGLang asks a backend about prefill; the base class would answer for the dense one."""


def dense_backend(runner: Any) -> AttentionBackend:
    """The dense backend that SGLang would choose for the device: FlashAttention 3 on Hopper, ..."""
    from sglang.srt.arg_groups.model_override_base import get_default_attn_backend
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    name = "torch_native"
    if str(runner.device) != "cpu":
        name = get_default_attn_backend(runner.server_args, False, runner.model_config)
    logger.info("sparsekv: prefill and dense decode by SGLang's %s", name)
    return ATTENTION_BACKENDS[name](runner)


class SparseKVBackend(AttentionBackend):  # type: ignore[misc]
    """Holds SGLang's dense backend and takes decode from it.

    A step is planned once (`init_forward_metadata`); in every layer K and V are written, the units
    that fill are summarised, and decode rows read what was selected for them. How that is done is
    `GroupedBackend`'s or `FusedBackend`'s.
    """

    def __init__(self, runner: Any, options: ServerOptions, ops: Ops) -> None:
        super().__init__()
        self.options = options
        self.on_cpu = str(runner.device) == "cpu"
        self.ops = ops
        check_runner(runner, options.methods, self.ops)
        self.dense = dense_backend(runner)
        for limit in DENSE_LIMITS:
            setattr(self, limit, getattr(self.dense, limit))
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.metadata: PageMetadata = self.token_to_kv_pool.page_metadata
        self.geometry = self.metadata.geometry
        self.layers = layers_of_all_stages(attention_layers(runner.model))
        self.metadata.last_layer = self.layers.last - self.token_to_kv_pool.start_layer
        self.table = activate(options)
        self.observer = StepObserver(
            options, self.ops, self.metadata, self.table, self.layers, runner
        )
        activate_sharing(Sharing(self.table, self.metadata, self.observer.metrics))
        self._decode_tokens: torch.Tensor | None = None
        self.observer.log_start(self.ops.name, self.on_cpu)

    # -- what a kind of decode defines ------------------------------------------------------

    @abstractmethod
    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan a step: which rows decode, what each reads, which units fill."""

    @abstractmethod
    def _summarise(self, layer: Any) -> None:
        """Write the page metadata of units that this step fills, in one layer."""

    @abstractmethod
    def _decode(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        """Decode attention: q `[rows, Hq, D]` -> `[rows, Hq, Dv]`."""

    @property
    def prefills(self) -> bool:
        """Whether prefill is ours too; else SGLang's dense backend runs it."""
        return False

    def _prefill(self, q: torch.Tensor, layer: Any) -> torch.Tensor:
        """Prefill of this step's rows: q `[tokens, Hq, D]` -> `[tokens, Hq, Dv]`."""
        raise NotImplementedError

    def _extended(self, q: torch.Tensor, layer: Any) -> None:
        """Prompts were read in a layer of ours: q `[tokens, Hq, D]`."""

    def _is_sparse_step(self) -> bool:
        """Whether decode rows go our way in this step."""
        return True

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
        if not self._serves(layer, kwargs) or not self._is_sparse_step():
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
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        served = self._serves(layer, kwargs)
        if served and self.prefills:
            self._write(k, v, layer, forward_batch, save_kv_cache)
            self._summarise(layer)
            rows = self._prefill(queries, layer)
        else:
            out = self.dense.forward_extend(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
            self._summarise(layer)
            rows = out.view(-1, layer.tp_q_head_num, layer.v_head_dim)
        if served:
            self._extended(queries, layer)
        if self._decode_tokens is not None and served:
            rows[self._decode_tokens] = self._decode(queries[self._decode_tokens], layer)
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

    def _serves(self, layer: Any, keywords: dict[str, Any]) -> bool:
        """Whether a call of a layer is ours; what its keywords ask for (sinks, slopes) is not."""
        asked = [name for name, value in keywords.items() if value is not None]
        if asked and self.layers.leave_to_sglang(layer.layer_id):
            logger.warning(
                "sparsekv: layer %d is served dense by SGLang: it is called with %s",
                layer.layer_id,
                ", ".join(asked),
            )
            self._left_to_sglang(layer)
        return not asked and self.layers.is_ours(layer.layer_id)

    def _left_to_sglang(self, layer: Any) -> None:
        """A layer that looked like ours at start is none; told once."""

    def _local(self, layer: Any) -> int:
        """Layer counted from this rank's first."""
        return int(layer.layer_id - self.token_to_kv_pool.start_layer)


def host_lengths(forward_batch: Any) -> Any:
    """Tokens of each row, int64 `[rows]`, without asking the device where that can be."""
    lengths = forward_batch.seq_lens_cpu
    if lengths is None:
        lengths = forward_batch.seq_lens.cpu()
    return lengths.numpy().astype(np.int64)
