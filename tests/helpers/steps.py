"""Forward steps of requests on SGLang's memory, through our attention backend's own methods."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from sgl_sparsekv.backend.host_copies import fetch_copies
from sgl_sparsekv.backend.request_table import note_batch

from .cold import leaves_out
from .memory import Memory
from .toy_model import DIM, GROUP, HEADS, LAYERS, SCALE


class StepDied(Exception):
    """A forward step was broken off between two layers."""


@dataclass
class Live:
    """A request that the host knows: waiting, in the middle of its prefill, or decoding."""

    req: Any
    paths: list[int]
    decoding: bool = False
    as_cold: bool = True
    """It went the way that it would have gone alone: prompt by us, then token by token."""

    @property
    def row(self) -> int:
        """Row of `req_to_token`."""
        return int(self.req.kv.req_pool_idx)

    @property
    def length(self) -> int:
        """Tokens whose K is in the pool."""
        return int(self.req.kv.kv_committed_len)

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        return [*self.req.origin_input_ids, *self.req.output_ids]


@dataclass
class Steps(Memory):
    """Memory, and the steps that read and write it.

    Attributes:
        kept_back: slots `[n]` whose token a request generated that read less than everything and
            does not share.
    """

    kept_back: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept_back = torch.zeros(self.pool.k_buffer[0].shape[0], dtype=torch.bool)

    def _forward(
        self,
        rows: list[tuple[Live, torch.Tensor]],
        extend: int,
        *,
        row_of: dict[int, int] | None = None,
        judged: bool = True,
        **how: Any,
    ) -> None:
        batch = self._plan(rows, extend, row_of or {}, how.pop("padding", 0))
        self._run(batch, rows, extend, judged=judged, **how)

    def _plan(
        self,
        rows: list[tuple[Live, torch.Tensor]],
        extend: int,
        row_of: dict[int, int],
        padding: int = 0,
    ) -> Any:
        """`ForwardBatch.init_new` and `init_forward_metadata` of a batch."""
        indices = [row_of.get(id(live)) or live.row for live, _ in rows]
        mode = self._note(rows, extend)
        lengths = [live.length or len(live.paths) for live, _ in rows]
        sizes = [len(slots) for _, slots in rows]
        batch = SimpleNamespace(
            forward_mode=mode,
            req_pool_indices=torch.tensor(indices + [0] * padding),
            seq_lens=torch.tensor(lengths + [1] * padding),
            seq_lens_cpu=torch.tensor(lengths + [1] * padding),
            out_cache_loc=torch.cat([slots for _, slots in rows] + [torch.zeros(padding).long()]),
            out_cache_loc_is_physical=True,
            extend_seq_lens_cpu=sizes + [1] * padding,
            encoder_lens=None,
            batch_size=len(indices) + padding,
        )
        self.backend.init_forward_metadata(batch)
        return batch

    def _note(self, rows: list[tuple[Live, torch.Tensor]], extend: int) -> Any:
        """`ForwardBatch.init_new` of a batch, whoever runs it; gives the mode it runs in."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        mode = ForwardMode.EXTEND if extend else ForwardMode.DECODE
        scheduled = SimpleNamespace(
            reqs=[live.req for live, _ in rows],
            forward_mode=ForwardMode.MIXED if 0 < extend < len(rows) else mode,
            decoding_reqs=[live.req for live, _ in rows[extend:]],
        )
        note_batch(None, None, scheduled, SimpleNamespace(is_draft_worker=False))
        return mode

    def _run(
        self,
        batch: Any,
        rows: list[tuple[Live, torch.Tensor]],
        extend: int,
        *,
        lengths: dict[int, int] | None = None,
        judged: bool = True,
        fused: bool = False,
        die_after: int | None = None,
    ) -> None:
        """All layers of a planned batch."""
        paths: list[int] = []
        for live, slots in rows:
            end = length_of(live, lengths)
            paths += live.paths[end - len(slots) : end]
        paths += [0] * (len(batch.out_cache_loc) - len(paths))
        forward = self.backend.forward_extend if extend else self.backend.forward_decode
        decode = [(i, live) for i, (live, _) in enumerate(rows) if i >= extend]
        self.recorder.start(decode if judged else [])
        self._keep_back(batch, rows[extend:], lengths)
        for layer in range(LAYERS):
            module = attention_layer(layer)
            k, v = self.model.keys(layer, paths), self.model.values(layer, paths)
            if fused:
                self.pool.set_kv_buffer(module, batch.out_cache_loc, k, v)
            q = self.model.queries(layer, paths).reshape(len(paths), -1)
            out = forward(q, k, v, module, batch, save_kv_cache=not fused)
            self.recorder.outputs[layer] = out.view(len(paths), HEADS, GROUP, DIM)
            if layer == die_after:
                raise StepDied
        fetch_copies(None)
        self.recorder.done = judged

    def _keep_back(
        self, batch: Any, decode: list[tuple[Live, torch.Tensor]], lengths: dict[int, int] | None
    ) -> None:
        """Note which of the slots that a step writes others must not read."""
        self.kept_back[batch.out_cache_loc] = False
        for live, slot in decode:
            entry = self.backend.table.of(live.req)
            options = entry.options
            less = leaves_out(length_of(live, lengths), options, self.geometry.unit_size)
            if entry.view is not None:
                less = entry.view.made > 0 and options.dense_layers < LAYERS
            self.kept_back[slot] = self.chooses and less and not options.share_generated


def length_of(live: Live, lengths: dict[int, int] | None) -> int:
    """Tokens of a request in the step that runs, which may be its last and behind its end."""
    return (lengths or {}).get(id(live)) or live.length or len(live.paths)


def attention_layer(layer: int) -> Any:
    """What the backend reads from SGLang's `RadixAttention`."""
    return SimpleNamespace(
        layer_id=layer,
        tp_q_head_num=HEADS * GROUP,
        tp_k_head_num=HEADS,
        tp_v_head_num=HEADS,
        qk_head_dim=DIM,
        v_head_dim=DIM,
        scaling=SCALE,
        sliding_window_size=-1,
        is_cross_attention=False,
        attn_type="decoder",
        logit_cap=0.0,
        xai_temperature_len=-1,
    )
