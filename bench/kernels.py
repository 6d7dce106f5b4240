"""Kernels of one layer, first judged by the reference, then timed against SGLang's `torch_native`.

    python -m bench.kernels --device cpu --json FILE

One layer of Llama-3.1-8B: 32 query and 8 KV heads of 128, bfloat16, page 16, budget 2048. Several
layers' buffers take turns, so that no read comes from a cache. `ms` is the least of the repeats
and `median_ms` their median; ours, the peer and the memory's bandwidth take turns in one run.
`floor_ms` is the bytes that must be read over the best bandwidth of summing a large buffer.
A busy machine says nothing: where a worker waits for a core, every op takes milliseconds. The
header has the load before and after.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Read when torch first allocates: 2 MiB pages for large tensors, for us and for the peer.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from bench.bandwidth import clock, read_bandwidth
from bench.layers import BUDGET, DIM, GROUP, HEADS, PAGE_SIZE, Layers, gate, prefill_layer
from bench.peer import torch_native_decode, torch_native_extend
from sgl_sparsekv.demo.result import environment
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.types import Reduction

SCALE = DIM**-0.5
TOKEN_BYTES = 2 * HEADS * DIM * 2
UNIT_BYTES = 2 * HEADS * DIM * 2


@dataclass(frozen=True)
class Row:
    """One op at one shape; times in milliseconds.

    Attributes:
        op: op, or `decode_sparse` for score + select + attend with everything around them.
        method: `quest` or `dense`.
        context: tokens of each row.
        batch: rows.
        page_size: slots per page.
        budget: tokens attended per row and KV head.
        ms: least of the repeats.
        median_ms: median of the repeats.
        bytes: what must be read.
        floor_ms: bytes over the measured read bandwidth; None where arithmetic is the limit.
        of_floor: ms / floor_ms.
        peer: what it is compared with.
        peer_ms: the peer's least.
        speedup: peer_ms / ms.
    """

    op: str
    method: str
    context: int
    batch: int
    page_size: int
    budget: int
    ms: float
    median_ms: float
    bytes: int
    floor_ms: float | None
    of_floor: float | None
    peer: str | None = None
    peer_ms: float | None = None
    speedup: float | None = None


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


def decode_rows(ops: Ops, context: int, batch: int, repeats: int, speed: float) -> list[Row]:
    """Gate, then time decoding at one shape."""
    layers = Layers.make(ops, context, batch)
    gate(ops, layers, SCALE)
    calls = decode_calls(ops, layers)
    times = clock(calls, repeats)
    both = {name: calls[name] for name in ("decode_sparse", "decode_dense")}
    peer = clock({"peer": torch_native_decode(layers, SCALE), **both}, max(3, repeats // 8))
    metadata = batch * layers.units * UNIT_BYTES
    chosen = batch * min(BUDGET, context) * TOKEN_BYTES
    whole = batch * context * TOKEN_BYTES
    sizes = {"decode_sparse": metadata + chosen, "decode_dense": whole, "score": metadata}
    sizes |= {"select": batch * HEADS * layers.units * 4, "attend": chosen}
    rows = []
    for name in calls:
        dense = name == "decode_dense"
        shape = ("dense" if dense else "quest", context, batch, context if dense else BUDGET)
        rows.append(_row(name, shape, times[name], sizes[name], speed, peer))
    return rows


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
    fields = layer.keys.new_empty(tokens // PAGE_SIZE, HEADS, 2, DIM)
    units = torch.arange(tokens // PAGE_SIZE)
    summarise = clock(
        {"ours": lambda _: ops.summarise(Quest.summary, layer.keys, fields, units)}, 5
    )["ours"]
    size = tokens * TOKEN_BYTES // 2 + tokens // PAGE_SIZE * UNIT_BYTES
    shape = ("dense", tokens, 1, tokens)
    return [
        _row("prefill", shape, ours, tokens * TOKEN_BYTES, None, {"peer": peer}),
        _row("summarise", ("quest", tokens, 1, tokens), summarise, size, speed, {}),
    ]


def _row(
    op: str,
    shape: tuple[str, int, int, int],
    times: list[float],
    size: int,
    speed: float | None,
    peer: dict[str, list[float]],
) -> Row:
    method, context, batch, budget = shape
    ms = min(times + peer.get(op, []))
    floor = size / speed if speed else None
    compared = "peer" in peer and op in ("decode_sparse", "decode_dense", "prefill")
    peer_ms = min(peer["peer"]) if compared else None
    return Row(
        *(op, method, context, batch, PAGE_SIZE, budget, ms, median(times), size),
        *(floor, ms / floor if floor else None),
        *("torch_native" if compared else None, peer_ms, peer_ms / ms if peer_ms else None),
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; 0 unless the file is there already."""
    args = _arguments(argv)
    if args.json and args.json.exists():
        print(f"bench.kernels: {args.json} is there already", file=sys.stderr)
        return 2
    ops = load_ops(args.device)
    buffer = torch.ones(1 << 28)
    best, typical = read_bandwidth(buffer)
    header = {
        **environment(),
        "threads": torch.get_num_threads(),
        "device": args.device,
        "heads": [HEADS * GROUP, HEADS, DIM],
        "read_gb_per_s": best / 1e6,
        "read_gb_per_s_median": typical / 1e6,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(header))
    rows: list[Row] = []
    for batch in args.batches:
        for context in args.contexts:
            best = max(best, read_bandwidth(buffer, 3)[0])
            rows += decode_rows(ops, context, batch, args.repeats, best)
            print("\n".join(map(_line, rows[-5:])), flush=True)
    if args.prefill:
        rows += prefill_rows(ops, args.prefill, args.chunk, args.prefill_repeats, best)
        print("\n".join(map(_line, rows[-2:])), flush=True)
    header["load_average_end"] = os.getloadavg()[0]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"header": header, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _line(row: Row) -> str:
    """One line of the printed table."""
    text = f"{row.op:14}{row.method:6} ctx {row.context:7} batch {row.batch} {row.ms:10.3f} ms"
    if row.floor_ms and row.of_floor:
        text += f"  floor {row.floor_ms:8.3f} ({row.of_floor:.2f}x)"
    if row.peer_ms and row.speedup:
        text += f"  {row.peer} {row.peer_ms:9.1f} ({row.speedup:.1f}x)"
    return text


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="bench.kernels", description=__doc__)
    parser.add_argument("--device", default="cpu", help="device of the ops")
    parser.add_argument("--json", type=Path, help="file to write, which must not exist")
    parser.add_argument("--contexts", type=numbers, default=[4096, 8192, 32768, 131072])
    parser.add_argument("--batches", type=numbers, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=24, help="timed runs of each decode op")
    parser.add_argument("--prefill", type=int, default=16384, help="prompt tokens; 0: none")
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens per chunk")
    parser.add_argument("--prefill-repeats", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
