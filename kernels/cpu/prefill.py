"""Causal attention of a prefill chunk from torch's flash attention."""

import torch

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def merge(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join two attention states `[..., Dv]`, `[...]` over disjoint keys."""
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a = (lse_a - lse).exp_()[..., None]
    weight_b = (lse_b - lse).exp_()[..., None]
    return (out_a * weight_a + out_b * weight_b).to(out_a.dtype), lse


def prefill(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, scale: float
) -> torch.Tensor:
    """See `Ops.prefill`: the prefix without a mask, the chunk itself causally, then merged.

    K and V are gathered once and never repeated for the query heads of a group: over the prefix
    the group is folded into the query length, over the chunk its heads take turns.
    """
    new, heads = q.shape[0], keys.shape[1]
    prefix = slots.shape[0] - new
    k = keys.index_select(0, slots).transpose(0, 1).contiguous()[None]  # [1, H, L, D]
    v = values.index_select(0, slots).transpose(0, 1).contiguous()[None]
    grouped = q.view(new, heads, -1, q.shape[-1]).permute(2, 1, 0, 3)  # [G, H, T, D]
    out = q.new_empty(new, heads, grouped.shape[0], v.shape[-1])
    chunk = [
        flash(one[None], k[:, :, prefix:], v[:, :, prefix:], is_causal=True, scale=scale)
        for one in grouped
    ]
    if prefix:
        folded = grouped.transpose(0, 1).flatten(1, 2)[None]  # [1, H, G * T, D]
        before, before_lse = flash(folded, k[:, :, :prefix], v[:, :, :prefix], scale=scale)
        before = before.unflatten(2, (-1, new))
        before_lse = before_lse.unflatten(2, (-1, new))
    for g, (state, lse) in enumerate(chunk):
        if prefix:
            state, _ = merge(before[:, :, g], before_lse[:, :, g], state, lse)
        out[:, :, g] = state[0].transpose(0, 1)
    return out.view(new, -1, v.shape[-1])
