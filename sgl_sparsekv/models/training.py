"""Trains the two-layer model on a ladder of lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sgl_sparsekv.models.curriculum import Batch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PAGE = 16


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of `x` `[bs, heads, n, head_dim]` by `cos`, `sin` `[bs, n, head_dim]`."""
    a, b = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-b, a), dim=-1) * sin[:, None]


def split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """`[bs, n, heads * head_dim]` to `[bs, heads, n, head_dim]`."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def page_bounds(q: torch.Tensor, k: torch.Tensor, page: int) -> torch.Tensor:
    """Quest's upper bound of q.k by page: `q` `[b, h, t, d]`, `k` `[b, h, n, d]` -> `[b, h, t, p]`.

    The newest keys that fill no page are left out.
    """
    paged = k[:, :, : k.shape[2] // page * page].unflatten(2, (-1, page))
    low, high = paged.amin(3), paged.amax(3)
    up, down = q.clamp(min=0), q.clamp(max=0)
    return up @ high.transpose(-1, -2) + down @ low.transpose(-1, -2)


def tail_forward(
    model: LlamaForCausalLM, batch: Batch, with_bounds: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[bs, tail, vocab]` of the last places, and last-layer page bounds `[bs, h, tail, p]`
    (empty unless `with_bounds`).

    The same arithmetic as the model's own forward, except that the last layer answers only where
    an answer is due: that makes long samples affordable.
    """
    inner: Any = model.model
    h = inner.embed_tokens(batch.ids)
    cos, sin = inner.rotary_emb(h, batch.positions)
    dim, tail = model.config.head_dim, batch.tail
    bounds = torch.empty(0)
    for i, layer in enumerate(inner.layers):
        last = i == len(inner.layers) - 1
        x, attn = layer.input_layernorm(h), layer.self_attn
        if last:
            h = h[:, -tail:]
        xq = x[:, -tail:] if last else x
        q = rotate(
            split_heads(attn.q_proj(xq), dim), cos[:, -xq.shape[1] :], sin[:, -xq.shape[1] :]
        )
        k, v = rotate(split_heads(attn.k_proj(x), dim), cos, sin), split_heads(attn.v_proj(x), dim)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if last:
            n = k.shape[2]
            mask = torch.ones(tail, n, dtype=torch.bool).tril(n - tail)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if with_bounds:
                bounds = page_bounds(q, k, PAGE) * dim**-0.5
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + attn.o_proj(out.transpose(1, 2).flatten(2))
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    return model.lm_head(inner.norm(h)), bounds


def page_loss(bounds: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the page bounds `[bs, h, tail, p]` against the page of `sources`.

    It asks of the keys that a page's min/max tell whose answer it holds; without it learned keys
    may be told apart one by one and not by page.
    """
    page = sources // PAGE
    page = page.masked_fill((sources < 0) | (page >= bounds.shape[-1]), -100)
    target = page[:, None].expand(-1, bounds.shape[1], -1)
    return F.cross_entropy(bounds.flatten(0, 2), target.flatten(), ignore_index=-100)
