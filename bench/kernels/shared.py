"""Rows on one prefix: a step of all of them, beside as many steps of one row each."""

from collections.abc import Callable
from dataclasses import replace

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Candidates, Reduction, Selection

from .bandwidth import clock
from .decode import CACHES, decode_calls
from .layers import (
    BUDGET,
    DIM,
    GROUP,
    HEADS,
    PAGE_SIZE,
    SCALE,
    SINK_UNITS,
    WINDOW_UNITS,
    Layers,
    gate,
    modelled_rows,
)
from .ratios import beside
from .rows import TOKEN_BYTES, UNIT_BYTES, Row, row_of

OWN = 512
"""Tokens that each row has of its own, behind the prefix."""
OPS = {"decode_sparse": "sparse", "decode_dense": "dense", "score": "score", "attend": "attend"}
"""Op of one step -> how `shared_*` and `alone_*` call it."""


def layers_on_a_prefix(ops: Ops, context: int, rows: int) -> Layers:
    """One layer of rows that share `context` tokens and have `OWN` others each."""
    prefix, own = context // PAGE_SIZE, OWN // PAGE_SIZE
    units = prefix + own
    slots = (prefix + rows * own) * PAGE_SIZE
    keys, values = modelled_rows(slots, 0), modelled_rows(slots, 1000)
    fields = keys.new_empty(slots // PAGE_SIZE, HEADS, 2, DIM)
    ops.summarise(Quest.summary, keys, fields, torch.arange(len(fields)))
    behind = prefix + torch.arange(rows * own).view(rows, own)
    table = torch.cat([torch.arange(prefix).expand(rows, -1), behind], 1).int()

    def full(value: int) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.int32)

    draw = torch.Generator().manual_seed(0)
    return Layers(
        torch.randn(rows, HEADS, GROUP, DIM, generator=draw).bfloat16(),
        *([keys], [values], [fields]),
        Candidates(table, full(SINK_UNITS), full(units - WINDOW_UNITS)),
        *(full(units), full(BUDGET // PAGE_SIZE), full(PAGE_SIZE // 2), units * PAGE_SIZE),
    )


def only(layers: Layers, row: int) -> Layers:
    """The same with one row."""
    one, spans = slice(row, row + 1), layers.candidates
    return replace(
        layers,
        q=layers.q[one],
        candidates=Candidates(spans.unit_table[one], spans.begin[one], spans.end[one]),
        num_units=layers.num_units[one],
        counts=layers.counts[one],
        tails=layers.tails[one],
    )


def distinct(selection: Selection) -> int:
    """Units that some row of a batch reads, over all KV heads."""
    heads = selection.physical.unbind(1)
    return sum(int(head.unique().numel()) for head in heads)


def shared_rows(ops: Ops, context: int, batch: int, repeats: int, speed: float) -> list[Row]:
    """Judge every row by itself alone, then time all rows together and one after the other.

    Raises:
        AssertionError: a row is not what it is alone, to the bit, or not what the reference says.
    """
    layers = layers_on_a_prefix(ops, context, batch)
    singles = [only(layers, row) for row in range(batch)]
    gate(ops, singles[-1], SCALE)
    together, alone = decode_calls(ops, layers), [decode_calls(ops, one) for one in singles]
    for op in OPS:
        for row, calls in enumerate(alone):
            assert _same(together[op](0), calls[op](0), row), f"{op} of row {row} is another alone"
    calls: dict[tuple[str, str], Callable[[int], object]] = {}
    for op, name in OPS.items():
        calls[f"shared_{name}", _method(op)] = together[op]
        calls[f"alone_{name}", _method(op)] = _one_after_the_other([one[op] for one in alone])
    other = torch.ones(CACHES // 4)
    every = {key: call for one in calls.items() for key, call in (_flush(other, one[0]), one)}
    times = clock(every, repeats)
    sizes = _sizes(ops, layers)
    rows = []
    for key in calls:
        kind, op = key[0].split("_")
        size = sizes[op] if kind == "shared" else batch * sizes[f"{op} of one"]
        budget = layers.context if op == "dense" else BUDGET
        row = row_of(key[0], (key[1], context, batch, budget), times[key], size, speed, None)
        rows.append(replace(row, **beside(times, key)))
    return rows


def _same(together: object, alone: object, row: int) -> bool:
    """Whether a row of what a call returned is what another returned."""
    pairs = zip(
        *([x] if isinstance(x, torch.Tensor) else x for x in (together, alone)), strict=True
    )
    return all(torch.equal(all_rows[row], one[0]) for all_rows, one in pairs)


def _method(op: str) -> str:
    return "dense" if op == "decode_dense" else "quest"


def _one_after_the_other(calls: list[Callable[[int], object]]) -> Callable[[int], object]:
    return lambda i: [call(i) for call in calls]


def _flush(
    other: torch.Tensor, key: tuple[str, str]
) -> tuple[tuple[str, str], Callable[[int], object]]:
    """What fills caches with something else in front of a call."""
    return ("flush", str(key)), lambda _: other.sum()


def _sizes(ops: Ops, layers: Layers) -> dict[str, int]:
    """Bytes that differ, of all that the rows read, and what one row reads."""
    rows, spans = len(layers.q), layers.candidates
    args = (Quest.summary, layers.q, layers.fields[0], spans, SCALE)
    scores = ops.score(*args, reduction=Reduction.MAX_SOFTMAX)
    chosen = distinct(ops.select(scores, spans, layers.num_units, layers.counts))
    read, metadata = chosen * PAGE_SIZE * TOKEN_BYTES // HEADS, len(layers.fields[0]) * UNIT_BYTES
    one = {"score": layers.units * UNIT_BYTES, "attend": BUDGET * TOKEN_BYTES}
    dense = (layers.context - OWN + rows * OWN) * TOKEN_BYTES
    return {
        **{"score": metadata, "attend": read, "sparse": metadata + read, "dense": dense},
        **{f"{name} of one": size for name, size in one.items()},
        "sparse of one": sum(one.values()),
        "dense of one": layers.context * TOKEN_BYTES,
    }
