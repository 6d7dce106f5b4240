"""Answers questions over one shared document with page-sparse decoding, in plain torch.

It shares no line with the serving backend, so the two can be held against each other. As in
serving, the prompt is read densely and only decode steps see a selection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from sgl_sparsekv.models.documents import Document
from sgl_sparsekv.models.training import rotate, split_heads

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

Method = Literal["dense", "quest", "recent"]


@dataclass(frozen=True)
class Selector:
    """What a decode step may see of the document.

    "quest" keeps `budget` tokens per request and KV head: sinks, window, and the pages of highest
    min/max bound, taken over the query heads of the KV head. "recent" keeps only sinks and window.
    `withheld` pages are never seen by any method.
    """

    method: Method = "dense"
    budget: int = 512
    page_size: int = 16
    num_sink: int = 16
    num_window: int = 64
    withheld: frozenset[int] = frozenset()

    def keep(self, q: torch.Tensor, k: torch.Tensor, num_tail: int) -> torch.Tensor:
        """Which document tokens stay: `[bs, num_kv_heads, n]` bool.

        Args:
            q: rotated queries `[bs, num_kv_heads, group, head_dim]`.
            k: rotated keys of the document `[1, num_kv_heads, n, head_dim]`.
            num_tail: tokens after the document, always kept.
        """
        n, page = k.shape[2], self.page_size
        place = torch.arange(n)
        fixed = place < self.num_sink
        fixed |= place >= (n + num_tail - self.num_window) // page * page
        keep = fixed.expand(q.shape[0], k.shape[1], n).clone()
        if self.method == "dense":
            keep[:] = True
        elif self.method == "quest":
            room = self.budget // page - int(fixed.sum()) // page - -(-num_tail // page)
            keep |= self._top_pages(q, k, fixed, max(0, room))
        for withheld in self.withheld:
            keep[:, :, withheld * page : (withheld + 1) * page] = False
        return keep

    def _top_pages(
        self, q: torch.Tensor, k: torch.Tensor, fixed: torch.Tensor, room: int
    ) -> torch.Tensor:
        page, n = self.page_size, k.shape[2]
        full = n // page
        paged = k[:, :, : full * page].float().unflatten(2, (full, page))
        up = q.float().clamp(min=0) @ paged.amax(3).transpose(-1, -2)
        bound = (up + q.float().clamp(max=0) @ paged.amin(3).transpose(-1, -2)).amax(2)
        taken = fixed[: full * page].view(full, page).all(1)
        bound = bound.masked_fill(taken, -torch.inf)
        chosen = bound.topk(min(room, full - int(taken.sum())), dim=-1).indices
        pages = torch.zeros_like(bound, dtype=torch.bool).scatter_(-1, chosen, True)
        return F.pad(pages.repeat_interleave(page, -1), (0, n - full * page))


@dataclass
class _LayerCache:
    """Rotated keys and values `[bs or 1, num_kv_heads, n, head_dim]` of document and tail."""

    k: torch.Tensor
    v: torch.Tensor
    tail_k: torch.Tensor
    tail_v: torch.Tensor


class Reader:
    """Reads one document once, then answers any number of questions from that prefix."""

    def __init__(self, model: LlamaForCausalLM, document_ids: torch.Tensor) -> None:
        """`document_ids` is `[n]`."""
        self.model = model
        self.inner: Any = model.model
        self.num_document = len(document_ids)
        self.caches: list[_LayerCache] = []
        with torch.no_grad():
            self._read(document_ids[None])

    def generate(self, suffix_ids: torch.Tensor, num_new: int, selector: Selector) -> torch.Tensor:
        """Greedy answers `[bs, num_new]` to the questions `suffix_ids` `[bs, m]`."""
        caches = [replace(cache) for cache in self.caches]
        empty = caches[0].k.new_zeros(len(suffix_ids), *caches[0].k.shape[1:2], 0, self._dim)
        for cache in caches:
            cache.tail_k = cache.tail_v = empty
        with torch.no_grad():
            token = self._step(suffix_ids, caches, replace(selector, method="dense"))
            out = [token]
            for _ in range(num_new - 1):
                token = self._step(token[:, None], caches, selector)
                out.append(token)
        return torch.stack(out, 1)

    @property
    def _dim(self) -> int:
        return int(self.model.config.head_dim)

    def _project(
        self, layer: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, attn = layer.input_layernorm(h), layer.self_attn
        q, k, v = (split_heads(p(x), self._dim) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _finish(self, layer: Any, h: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        h = h + layer.self_attn.o_proj(out.transpose(1, 2).flatten(2))
        return h + layer.mlp(layer.post_attention_layernorm(h))

    def _read(self, ids: torch.Tensor) -> None:
        h = self.inner.embed_tokens(ids)
        cos, sin = self.inner.rotary_emb(h, torch.arange(ids.shape[1])[None])
        for i, layer in enumerate(self.inner.layers):
            q, k, v = self._project(layer, h, cos, sin)
            self.caches.append(_LayerCache(k, v, k[:, :, :0], v[:, :, :0]))
            if i == len(self.inner.layers) - 1:
                return  # nothing is asked at these places
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            h = self._finish(layer, h, out)

    def _step(
        self, ids: torch.Tensor, caches: list[_LayerCache], selector: Selector
    ) -> torch.Tensor:
        """Next token `[bs]` after `ids` `[bs, m]`; the caches grow by `m`."""
        h = self.inner.embed_tokens(ids)
        start = self.num_document + caches[0].tail_k.shape[2]
        places = torch.arange(start, start + ids.shape[1])[None].expand(len(ids), -1)
        cos, sin = self.inner.rotary_emb(h, places)
        for layer, cache in zip(self.inner.layers, caches, strict=True):
            q, k, v = self._project(layer, h, cos, sin)
            cache.tail_k = torch.cat([cache.tail_k, k], 2)
            cache.tail_v = torch.cat([cache.tail_v, v], 2)
            h = self._finish(layer, h, self._attend(q, cache, selector))
        logits = self.model.lm_head(self.inner.norm(h[:, -1]))
        return logits.argmax(-1)

    def _attend(self, q: torch.Tensor, cache: _LayerCache, selector: Selector) -> torch.Tensor:
        """Output `[bs, num_qo_heads, m, head_dim]`; scores and softmax in float32."""
        bs, heads, m, dim = q.shape
        kv = cache.k.shape[1]
        q = q.reshape(bs, kv, heads // kv * m, dim)
        tail = cache.tail_k.shape[2]
        keep = selector.keep(q, cache.k, tail)
        old = (q @ cache.k.transpose(-1, -2)).float().masked_fill(~keep[:, :, None], -torch.inf)
        new = (q @ cache.tail_k.transpose(-1, -2)).float()
        causal = torch.ones(m, tail, dtype=torch.bool).tril(tail - m)
        new = new.masked_fill(~causal.repeat(heads // kv, 1), -torch.inf)
        weight = (torch.cat([old, new], -1) * dim**-0.5).softmax(-1).to(q.dtype)
        split = weight.split([old.shape[-1], tail], -1)
        out = split[0] @ cache.v + split[1] @ cache.tail_v
        return out.reshape(bs, heads, m, dim)


def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    document: Document,
    selectors: list[Selector],
) -> list[list[list[str]]]:
    """The answer tokens to every question of `document`, for each of `selectors`."""
    ids = torch.tensor(tokenizer(document.text)["input_ids"])
    asked = [tokenizer(q.suffix, add_special_tokens=False)["input_ids"] for q in document.questions]
    num_new = len(document.questions[0].answer_tokens)
    reader = Reader(model, ids)
    runs = [reader.generate(torch.tensor(asked), num_new, selector) for selector in selectors]
    return [[tokenizer.convert_ids_to_tokens(row.tolist()) for row in run] for run in runs]


def accuracy(document: Document, given: list[list[str]]) -> tuple[float, float]:
    """Share of answer tokens that are right in place, and of answers right to the last token."""
    pairs = list(zip(document.questions, given, strict=True))
    right = [a == b for q, row in pairs for a, b in zip(q.answer_tokens, row, strict=True)]
    whole = [list(q.answer_tokens) == row for q, row in pairs]
    return sum(right) / len(right), sum(whole) / len(whole)
