"""Decoding at one shape, judged by the reference and timed."""

from collections.abc import Callable
from dataclasses import replace

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Reduction

from . import coded, covering, two_level, viewing
from .bandwidth import clock
from .layers import BUDGET, HEADS, PAGE_SIZE, SCALE, Layers, gate
from .peer import torch_native_decode
from .ratios import beside
from .rows import TOKEN_BYTES, UNIT_BYTES, Row, row_of

CACHES = 128 << 20
"""Bytes; no CPU's caches are larger."""
WHOLE = ("decode_sparse", "decode_dense")
"""Ops that `torch_native` is a peer of."""
CODED_FROM = 32768
"""Contexts of one row from which on methods that read segment records are timed too."""


def decode_calls(ops: Ops, layers: Layers) -> dict[str, Callable[[int], object]]:
    """The timed calls of one shape, each a function of the repeat's number."""
    summary, candidates = Quest.summary, layers.candidates

    def score(i: int) -> torch.Tensor:
        fields = layers.fields[i % len(layers.fields)]
        return ops.score(summary, layers.q, fields, candidates, SCALE, Reduction.MAX_SOFTMAX)

    def attend(i: int, table: torch.Tensor, counts: torch.Tensor) -> object:
        keys, values = layers.pool(i)
        tails = layers.tails
        return ops.attend(layers.q, keys, values, table, counts, tails, SCALE, PAGE_SIZE)

    def sparse(i: int) -> object:
        chosen = ops.select(score(i), candidates, layers.num_units, layers.counts)
        return attend(i, chosen.physical, chosen.counts)

    scores = [score(i) for i in range(len(layers.fields))]
    chosen = [
        ops.select(one, candidates, layers.num_units, layers.counts).physical for one in scores
    ]
    shared = candidates.unit_table[:, None].expand(-1, HEADS, -1)
    return {
        "decode_sparse": sparse,
        "decode_dense": lambda i: attend(i, shared, layers.num_units),
        "score": score,
        "select": lambda i: ops.select(
            scores[i % len(scores)], candidates, layers.num_units, layers.counts
        ),
        "attend": lambda i: attend(i, chosen[i % len(chosen)], layers.counts),
    }


def clock_cold(
    calls: dict[tuple[str, str], Callable[[int], object]], repeats: int
) -> dict[tuple[str, str], list[float]]:
    """As `clock`, with caches full of something else before every call."""
    other = torch.ones(CACHES // 4)
    every: dict[tuple[str, str], Callable[[int], object]] = {}
    for key, call in calls.items():
        every["flush", str(key)] = lambda _: other.sum()
        every[key] = call
    times = clock(every, repeats)
    return {key: times[key] for key in calls}


def decode_rows(ops: Ops, context: int, batch: int, repeats: int, speed: float) -> list[Row]:
    """Gate, then time decoding at one shape."""
    layers = Layers.make(ops, context, batch)
    gate(ops, layers, SCALE)
    calls = {(name, "quest"): call for name, call in decode_calls(ops, layers).items()}
    calls["decode_dense", "dense"] = calls.pop(("decode_dense", "quest"))
    metadata = batch * layers.units * UNIT_BYTES
    chosen = batch * min(BUDGET, context) * TOKEN_BYTES
    sizes = {("decode_sparse", "quest"): metadata + chosen, ("score", "quest"): metadata}
    sizes |= {("attend", "quest"): chosen, ("select", "quest"): batch * HEADS * layers.units * 4}
    sizes["decode_dense", "dense"] = batch * context * TOKEN_BYTES
    for method in coded.METHODS:
        if ops.has_segments and batch == 1 and context >= CODED_FROM:
            tokens = coded.CodedLayers.make(ops, layers, method, SCALE)
            tokens.gate(ops)
            calls |= {(name, method): call for name, call in tokens.calls(ops).items()}
            sizes |= {(name, method): size for name, size in tokens.sizes().items()}
    if batch == 1 and context >= CODED_FROM:
        pruned = two_level.TwoLevelLayers.make(layers, SCALE)
        calls |= {(name, two_level.METHOD): call for name, call in pruned.calls(ops).items()}
        sizes |= {(name, two_level.METHOD): size for name, size in pruned.sizes().items()}
    if batch == 1 and context >= CODED_FROM:
        pages = covering.pages(layers, SCALE)
        adaptive = covering.CoveringLayers.make(ops, layers, "quest", pages, layers.tails)
        calls |= {(name, "quest"): call for name, call in adaptive.calls(ops).items()}
        sizes |= {(n, "quest"): size for n, size in adaptive.sizes(ops, metadata).items()}
        viewed = viewing.ViewLayers.make(layers, SCALE)
        viewed.gate(ops)
        calls |= {(name, viewing.METHOD): call for name, call in viewed.calls(ops).items()}
        sizes |= {(name, viewing.METHOD): size for name, size in viewed.sizes().items()}
    times = clock_cold(calls, repeats)
    whole = {key: call for key, call in calls.items() if key[0] in WHOLE}
    native = {("peer", ""): torch_native_decode(layers, SCALE)}
    peer = clock_cold(native | whole, max(3, repeats // 8))
    rows = []
    for key, found in times.items():
        budget = context if key[1] == "dense" else BUDGET
        compared = ("torch_native", min(peer["peer", ""])) if key in peer else None
        shape = (key[1], context, batch, budget)
        row = row_of(key[0], shape, found, sizes[key], speed, compared, peer.get(key, []))
        rows.append(replace(row, **beside(times, key)))
    return rows
