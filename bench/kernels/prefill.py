"""Prefill in chunks, and what is made of the keys that it writes."""

from collections.abc import Callable
from functools import partial

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection.quest import Quest

from . import coded
from .bandwidth import clock
from .layers import DIM, HEADS, PAGE_SIZE, SCALE, prefill_layer
from .peer import torch_native_extend
from .rows import TOKEN_BYTES, UNIT_BYTES, Row, row_of


def prefill_rows(ops: Ops, tokens: int, chunk: int, repeats: int, speed: float) -> list[Row]:
    """Time a prompt in chunks, and summarising what the chunks wrote."""
    layer = prefill_layer(tokens, chunk)
    ours, peer = [0.0] * repeats, [0.0] * repeats
    for first in range(0, tokens, chunk):
        q, slots = layer.q[first : first + chunk], layer.slots[: first + chunk]

        def run(_: int, q: torch.Tensor = q, slots: torch.Tensor = slots) -> torch.Tensor:
            return ops.prefill(q, layer.keys, layer.values, slots, SCALE)

        extend = torch_native_extend(layer, first, chunk, SCALE)
        if first <= chunk:
            torch.testing.assert_close(run(0), extend(0), atol=0.02, rtol=0.02)
        times = clock({"ours": run, "peer": extend}, repeats)
        ours = [total + ms for total, ms in zip(ours, sorted(times["ours"]), strict=True)]
        peer = [total + ms for total, ms in zip(peer, sorted(times["peer"]), strict=True)]
    native = ("torch_native", min(peer))
    shape = (tokens, 1, tokens)
    rows = [row_of("prefill", ("dense", *shape), ours, tokens * TOKEN_BYTES, None, native)]
    fields = layer.keys.new_empty(tokens // PAGE_SIZE, HEADS, 2, DIM)
    units = torch.arange(tokens // PAGE_SIZE)
    calls: dict[str, Callable[[int], object]] = {
        "quest": lambda _: ops.summarise(Quest.summary, layer.keys, fields, units)
    }
    for method, summary in coded.METHODS.items() if ops.has_segments else ():
        calls[method] = partial(_index, ops, summary, (layer.keys, layer.values), tokens)
    times = clock(calls, 5)
    size = tokens * TOKEN_BYTES // 2 + tokens // PAGE_SIZE * UNIT_BYTES
    rows.append(row_of("summarise", ("quest", *shape), times.pop("quest"), size, speed, None))
    for method, found in times.items():
        prefill = ("prefill", rows[0].ms)
        size = tokens * TOKEN_BYTES // 2
        rows.append(row_of("index", (method, *shape), found, size, None, prefill))
    return rows


def _index(
    ops: Ops,
    summary: coded.Summary,
    cache: tuple[torch.Tensor, torch.Tensor],
    tokens: int,
    _: int,
) -> object:
    return coded.indexed(ops, summary, cache, tokens)
