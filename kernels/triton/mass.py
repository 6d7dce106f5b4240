"""Attention mass of what rows have read: one more read of all their keys, in one launch.

Behind `attend`, in graphs that measure. Grid `[splits, H, rows]`, as that of `attend`: every split
sums up exp(q·k) over its run of the whole context, the one that finishes last joins them, and a
query head's mass is exp(lse of what was read - lse of everything). Values are not read, nor are
rows that nobody asked about.
"""

import triton
import triton.language as tl

from .attend import LEAST_TOKENS, joined_lse
from .primitives import LOG2E, UNIT_BITS, load_group, padded, take_turn


@triton.jit
def log_sum(
    group, keys, table, first, last, scale, stride_key_slot,
    UNIT: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp in base 2 of each query head of a group over a row's tokens `[first, last)`."""
    d = tl.arange(0, padded(DIM))
    best = tl.full([group.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([group.shape[0]], tl.float32)
    for start in tl.range(first, last, TOKENS, num_stages=STAGES):
        token = start + tl.arange(0, TOKENS)
        inside = token < last
        unit = tl.load(table + token // UNIT, mask=inside, other=0) & UNIT_BITS
        slot = unit.to(tl.int64) * UNIT + token % UNIT
        k = tl.load(
            keys + slot[None, :] * stride_key_slot + d[:, None],
            mask=inside[None, :] & (d < DIM)[:, None],
            other=0.0,
        )
        if UPCAST:
            k = k.to(tl.float32)
        logit = tl.dot(group, k, input_precision="ieee") * (scale * LOG2E)
        logit = tl.where(inside[None, :], logit, float("-inf"))
        higher = tl.maximum(best, tl.max(logit, 1))
        total = total * tl.exp2(best - higher) + tl.sum(tl.exp2(logit - higher[:, None]), 1)
        best = higher
    return best + tl.log2(total)


@triton.jit(do_not_specialize=["layer", "nth", "layers"])
def mass_kernel(
    q,
    keys,
    table,
    sampled,
    num_units,
    tails,
    dense_layers,
    finers,
    part_lse,
    tickets,
    lse,
    masses,
    scale,
    layer,
    nth,
    layers,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_key_slot,
    stride_key_head,
    stride_table,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    FINER: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """One split of one row and KV head.

    Args:
        q: `[rows, H, G, D]`; keys `[slots, H, D]`.
        table: int32 `[rows, width]`, all units of a row.
        sampled: int32 `[rows]`, 0 for rows that are not measured; nothing is written for those.
        num_units, tails, dense_layers, finers: int32 `[rows]`, see `select_kernel`; layers in which
            a row reads everything are not measured.
        part_lse: float32 `[rows, H, SPLITS, G]`; tickets: int32 `[rows, H]`, zero before and after.
        lse: float32 `[rows, H, G]`, natural, over what each row read.
        masses: float32 `[rows, layers, H, G]`, in [0, 1].
        nth: the layer's place in it.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    split, row = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    pair = row.to(tl.int64) * HEADS + head
    if (tl.load(sampled + row) == 0) | (layer < tl.load(dense_layers + row)):
        return
    unit_size = UNIT >> tl.load(finers + row) if FINER else UNIT
    tokens = (tl.load(num_units + row) - 1) * unit_size + tl.load(tails + row)
    share = tl.maximum(tl.cdiv(tokens, SPLITS), LEAST_TOKENS)
    active = tl.cdiv(tokens, share)
    if split >= active:
        return
    q += row.to(tl.int64) * stride_q_row + head * stride_q_head
    part = log_sum(
        load_group(q, stride_q_group, GROUP, DIM, UPCAST), keys + head * stride_key_head,
        table + row.to(tl.int64) * stride_table, split * share,
        tl.minimum(split * share + share, tokens), scale, stride_key_slot,
        UNIT, DIM, TOKENS, STAGES, UPCAST,
    )  # fmt: skip
    part_lse += pair * SPLITS * GROUP
    g = tl.arange(0, padded(GROUP, 16))
    tl.store(part_lse + split * GROUP + g, part, mask=g < GROUP)
    tl.debug_barrier()
    if tl.atomic_add(tickets + pair, 1, sem="acq_rel", scope="gpu") != active - 1:
        return
    tl.store(tickets + pair, 0)
    everything = joined_lse(part_lse, active, GROUP, SPLITS)
    g = tl.arange(0, padded(GROUP))
    read = tl.load(lse + pair * GROUP + g, mask=g < GROUP, other=0.0) * LOG2E
    covered = tl.exp2(read - everything)
    place = ((row.to(tl.int64) * layers + nth) * HEADS + head) * GROUP
    # Chosen, so that what is not a number stays none.
    tl.store(masses + place + g, tl.where(covered > 1.0, 1.0, covered), mask=g < GROUP)
