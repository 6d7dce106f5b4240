"""Kernels of one layer, first judged by the reference, then timed against SGLang's `torch_native`.

    python -m bench.kernels --device cpu --json FILE [--resume]

One layer of Llama-3.1-8B: 32 query and 8 KV heads of 128, bfloat16, page 16, budget 2048. Several
layers' buffers take turns and another buffer is read before each call, so that no read comes from a
cache. `ms` is the least of the repeats and `median_ms` their median; all methods, the peer and the
memory's bandwidth take turns in one run. `ratio` is the median over the turns of a step's time over
that of the step it must not be slower than; keys and queries are the same in every run.
`floor_ms` is the bytes that must be read over the best bandwidth of summing a large buffer.
A busy machine says nothing: where a worker waits for a core, every op takes milliseconds. The
header has the load before and after. Until FILE is written, each shape is kept in FILE's
`.part.jsonl`; `--resume` goes on with it.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

# Read when torch first allocates: 2 MiB pages for large tensors, for us and for the peer.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from bench import coded, covering, two_level, viewing
from bench.bandwidth import clock, read_bandwidth
from bench.layers import BUDGET, DIM, GROUP, HEADS, PAGE_SIZE, Layers, gate, prefill_layer
from bench.peer import torch_native_decode, torch_native_extend
from bench.ratios import beside
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.journal import GO_ON, Journal
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.types import Reduction

SCALE = DIM**-0.5
TOKEN_BYTES = 2 * HEADS * DIM * 2
UNIT_BYTES = 2 * HEADS * DIM * 2
CACHES = 128 << 20
"""Bytes; no CPU's caches are larger."""
WHOLE = ("decode_sparse", "decode_dense")
"""Ops that `torch_native` is a peer of."""
CODED_FROM = 32768
"""Contexts of one row from which on methods that read segment records are timed too."""


@dataclass(frozen=True)
class Row:
    """One op at one shape; times in milliseconds.

    Attributes:
        op: op; `decode_sparse` for score + select + attend with everything around them;
            `decode_covering` where a share of attention says how much is read, and `same_bytes`
            for a fixed budget that reads as many bytes; `decode_view` for what a view lists, and
            `same_tokens` for a dense step over as many.
        method: `quest`, `quest_two_level`, `clusterkv`, `pqcache`, `residual_pq`, `snapkv` or
            `dense`.
        context: tokens of each row.
        batch: rows.
        page_size: slots per page.
        budget: tokens attended per row and KV head.
        ms: least of the repeats.
        median_ms: median of the repeats.
        bytes: what must be read.
        floor_ms: bytes over the measured read bandwidth; None where arithmetic is the limit.
        of_floor: ms / floor_ms.
        peer: what it is compared with; `prefill`, of the same prompt, for indexing it.
        peer_ms: the peer's least.
        speedup: peer_ms / ms.
        beside: what it is held against: `quest`, `same_bytes` or `same_tokens`; None: nothing.
        ratio: median over the turns of its time over that one's in the same turn.
        ratio_spread: the middle half of these lies between.
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
    beside: str | None = None
    ratio: float | None = None
    ratio_spread: Sequence[float] | None = None


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
        row = _row(key[0], shape, found, sizes[key], speed, compared, peer.get(key, []))
        rows.append(replace(row, **beside(times, key)))
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
    native = ("torch_native", min(peer))
    shape = (tokens, 1, tokens)
    rows = [_row("prefill", ("dense", *shape), ours, tokens * TOKEN_BYTES, None, native)]
    fields = layer.keys.new_empty(tokens // PAGE_SIZE, HEADS, 2, DIM)
    units = torch.arange(tokens // PAGE_SIZE)
    calls: dict[str, Callable[[int], object]] = {
        "quest": lambda _: ops.summarise(Quest.summary, layer.keys, fields, units)
    }
    for method, summary in coded.METHODS.items() if ops.has_segments else ():
        calls[method] = partial(_index, ops, summary, (layer.keys, layer.values), tokens)
    times = clock(calls, 5)
    size = tokens * TOKEN_BYTES // 2 + tokens // PAGE_SIZE * UNIT_BYTES
    rows.append(_row("summarise", ("quest", *shape), times.pop("quest"), size, speed, None))
    for method, found in times.items():
        prefill = ("prefill", rows[0].ms)
        size = tokens * TOKEN_BYTES // 2
        rows.append(_row("index", (method, *shape), found, size, None, prefill))
    return rows


def _index(
    ops: Ops,
    summary: coded.Summary,
    cache: tuple[torch.Tensor, torch.Tensor],
    tokens: int,
    _: int,
) -> object:
    return coded.indexed(ops, summary, cache, tokens)


def _row(
    op: str,
    shape: tuple[str, int, int, int],
    times: list[float],
    size: int,
    speed: float | None,
    peer: tuple[str, float] | None,
    beside_peer: Sequence[float] = (),
) -> Row:
    method, context, batch, budget = shape
    ms = min([*times, *beside_peer])
    floor = size / speed if speed else None
    who, peer_ms = peer or (None, None)
    return Row(
        *(op, method, context, batch, PAGE_SIZE, budget, ms, median(times), size),
        *(floor, ms / floor if floor else None),
        *(who, peer_ms, peer_ms / ms if peer_ms else None),
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; 0 unless the file is there already."""
    args = _arguments(argv)
    if args.json and args.json.exists():
        print(f"bench.kernels: {args.json} is there already", file=sys.stderr)
        return 2
    try:
        journal = _journal(args)
    except ValueError as error:
        print(f"bench.kernels: {error}", file=sys.stderr)
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
    try:
        rows = measure(args, ops, lambda: max(best, read_bandwidth(buffer, 3)[0]), journal)
    except KeyboardInterrupt:
        print(f"bench.kernels: {journal.stopped()}", file=sys.stderr)
        return 130
    header["load_average_end"] = os.getloadavg()[0]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"header": header, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    journal.finish()
    return 0


def measure(
    args: argparse.Namespace, ops: Ops, speed: Callable[[], float], journal: Journal
) -> list[Row]:
    """Rows of every shape; those that the journal has are not measured again."""
    journal.expect(len(args.batches) * len(args.contexts) + (args.prefill > 0))
    shapes: dict[str, Callable[[float], list[Row]]] = {}
    for batch in args.batches:
        for context in args.contexts:
            time_shape = partial(decode_rows, ops, context, batch, args.repeats)
            shapes[f"decode of {batch} x {context:,}"] = time_shape
    if args.prefill:
        time_shape = partial(prefill_rows, ops, args.prefill, args.chunk, args.prefill_repeats)
        shapes[f"prefill of {args.prefill:,}"] = time_shape
    rows = []
    for name, time_shape in shapes.items():
        known = journal.once(name, lambda call=time_shape: [*map(asdict, call(speed()))])
        found = [Row(**one) for one in known]
        print("\n".join(map(_line, found)), flush=True)
        rows += found
    return rows


def _journal(args: argparse.Namespace) -> Journal:
    """Beside the result; without one there is nothing to go on with."""
    settings = {"device": args.device, "repeats": args.repeats, "chunk": args.chunk}
    path = args.json.with_suffix(".part.jsonl") if args.json else None
    return Journal(path, settings, args.resume, Progress())


def _line(row: Row) -> str:
    """One line of the printed table."""
    text = f"{row.op:14}{row.method:10} ctx {row.context:7} batch {row.batch} {row.ms:10.3f} ms"
    if row.floor_ms and row.of_floor:
        text += f"  floor {row.floor_ms:8.3f} ({row.of_floor:.2f}x)"
    if row.peer_ms and row.speedup:
        text += f"  {row.peer} {row.peer_ms:9.1f} ({row.speedup:.1f}x)"
    if row.ratio and row.ratio_spread:
        low, high = row.ratio_spread
        text += f"  {row.ratio:.2f} of {row.beside} ({low:.2f}-{high:.2f})"
    return text


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="bench.kernels", description=__doc__)
    parser.add_argument("--device", default="cpu", help="device of the ops")
    parser.add_argument("--json", type=Path, help="file to write, which must not exist")
    parser.add_argument(GO_ON, action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--contexts", type=numbers, default=[4096, 8192, 32768, 131072])
    parser.add_argument("--batches", type=numbers, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=96, help="timed runs of each decode op")
    parser.add_argument("--prefill", type=int, default=16384, help="prompt tokens; 0: none")
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens per chunk")
    parser.add_argument("--prefill-repeats", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
