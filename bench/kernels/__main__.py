"""Kernels of one layer, first judged by the reference, then timed against SGLang's `torch_native`.

    python -m bench.kernels --device cpu --json FILE [--resume]

One layer of Llama-3.1-8B: 32 query and 8 KV heads of 128, bfloat16, page 16, budget 2048. Several
layers' buffers take turns and another buffer is read before each call, so that no read comes from a
cache. Rows on one prefix, with 512 tokens of their own each, are timed together and one after the
other. `ms` is the least of the repeats and `median_ms` their median; all methods, the peer and the
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
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

# Read when torch first allocates: 2 MiB pages for large tensors, for us and for the peer.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.journal import GO_ON, Journal
from sgl_sparsekv.tooling.progress import Progress

from .bandwidth import read_bandwidth
from .decode import decode_rows
from .layers import DIM, GROUP, HEADS
from .prefill import prefill_rows
from .rows import Row
from .shared import shared_rows


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
    on_prefix = [(n, tokens) for tokens in args.shared if tokens for n in args.shared_rows]
    journal.expect(len(args.batches) * len(args.contexts) + len(on_prefix) + (args.prefill > 0))
    shapes: dict[str, Callable[[float], list[Row]]] = {}
    for batch in args.batches:
        for context in args.contexts:
            time_shape = partial(decode_rows, ops, context, batch, args.repeats)
            shapes[f"decode of {batch} x {context:,}"] = time_shape
    for batch, context in on_prefix:
        time_shape = partial(shared_rows, ops, context, batch, max(3, args.repeats // 8))
        shapes[f"decode of {batch} rows on one prefix of {context:,}"] = time_shape
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
    told = "tokens of a prefix that rows share; 0: none"
    parser.add_argument("--shared", type=numbers, default=[32768, 131072], help=told)
    parser.add_argument("--shared-rows", type=numbers, default=[4, 32], help="rows on a prefix")
    parser.add_argument("--repeats", type=int, default=96, help="timed runs of each decode op")
    parser.add_argument("--prefill", type=int, default=16384, help="prompt tokens; 0: none")
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens per chunk")
    parser.add_argument("--prefill-repeats", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
