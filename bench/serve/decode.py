"""A whole server: decode tokens/s over a long prompt, against SGLang's `torch_native`.

    python -m bench.serve.decode --device cpu --json FILE

The model has Qwen2.5-0.5B's shape (24 layers, 14 query and 2 KV heads of 64) or Llama-3.2-1B's (16
layers, 32 query and 8 KV heads of 64), whole or its first layers, and random weights: what is
measured does not depend on what the weights say. `--batch` requests on one prefix run together too.
Both servers get the same flags but for the backend; both read the prompt in one prefill chunk,
because `torch_native` computes a chunk's whole prefix anew. Repeats alternate between the servers,
and the one that waits sleeps.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.serve.client import Generation
from bench.serve.model import SHAPES
from bench.serve.timing import Timing, Variants
from sgl_sparsekv.errors import SparseKVError
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.journal import GO_ON, Journal
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.room import room
from sgl_sparsekv.tooling.servers import ServerSpec, serve

PAGE_SIZE = 64
TARGET = 4.0
ASKED = ("context", "tokens", "repeats", "batch", "budget", "shape", "layers", "seed")
"""Arguments that a run which goes on must share with the one before."""
DENSE, SPARSE = "torch_native", "sparsekv"


@dataclass(frozen=True)
class Row:
    """One way of reading.

    Attributes:
        name: what was run.
        server: which of the two servers.
        tokens_per_s: decode, batch 1: median over repeats, first token excluded.
        repeats: tokens/s of each repeat.
        step_ms: median milliseconds of a decode step over all repeats.
        batch_tokens_per_s: decode of `batch` requests on one prefix together; None if not run.
        kv_read_fraction: tokens attended over tokens in context.
        ratio: tokens_per_s over torch_native's.
    """

    name: str
    server: str
    tokens_per_s: float
    repeats: tuple[float, ...]
    step_ms: float
    batch_tokens_per_s: float | None
    kv_read_fraction: float
    ratio: float


def main(argv: list[str] | None = None) -> int:
    """Measure and write; 0 if quest reaches the target, else 1."""
    args = _arguments(argv)
    if args.json and args.json.exists():
        told = f"{args.json} is there already and is not overwritten"
        print(f"bench.serve.decode: {told}", file=sys.stderr)
        return 2
    progress, journal = Progress(), Journal()
    try:
        if args.json:
            asked = {name: getattr(args, name) for name in ASKED}
            path = args.json.with_suffix(".part.jsonl")
            journal = Journal(path, asked, args.resume, progress)
        result = measure(args, progress, journal)
    except KeyboardInterrupt:
        print(f"bench.serve.decode: {journal.stopped()}", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"bench.serve.decode: {error}", file=sys.stderr)
        return 2
    except (SparseKVError, RuntimeError, OSError) as error:
        print(f"bench.serve.decode: {error}", file=sys.stderr)
        return 1
    print(_header(result))
    print(_table([Row(**row) for row in result["rows"]]))
    print(
        f"quest / torch_native: {result['ratio']:.2f}x (target {TARGET:.0f}x: "
        f"{'reached' if result['passed'] else 'missed'})"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with args.json.open("x") as file:
            json.dump(result, file, indent=1)
        journal.finish()
    return 0 if result["passed"] else 1


def measure(args: argparse.Namespace, progress: Progress, journal: Journal) -> dict[str, Any]:
    """Start both servers, time what the journal lacks of every variant, stop them."""
    shape = SHAPES[args.shape]
    quest = {"budget": args.budget, "dense_layers": shape.dense_layers(args.layers)}
    variants: Variants = {
        "torch_native": (DENSE, None),
        "full": (SPARSE, {"method": "full"}),
        "quest": (SPARSE, {"method": "quest", **quest}),
    }
    words = shape.cut(args.layers)["vocab_size"]
    ids = random.Random(args.seed).choices(range(1000, words), k=args.context)
    folder = Path(tempfile.mkdtemp(prefix="bench-serve-"))
    progress.say(f"logs are in {folder}")
    flags = server_flags(folder, args)
    specs = [ServerSpec(DENSE, (*flags, "--attention-backend", DENSE))]
    specs.append(ServerSpec(SPARSE, (*flags, "--attention-backend", SPARSE)))
    with serve(specs, folder, progress) as servers:
        both = (DENSE, SPARSE)
        journal.expect(len(both) + len(variants) * (args.repeats + (args.batch > 1)))
        timing = Timing(variants, servers, ids, args.tokens, progress, journal)
        prefill = {name: timing.prefill(name) for name in both}
        runs = timing.repeats(args.repeats)
        together = timing.together(args.batch, PAGE_SIZE)
    dense = median(run.tokens_per_s for run in runs["torch_native"])
    rows = [
        _row(name, variants[name][0], runs[name], together.get(name), dense) for name in variants
    ]
    ratio = next(row.ratio for row in rows if row.name == "quest")
    return {
        "bench": "serve",
        "passed": ratio >= TARGET,
        "ratio": ratio,
        "target": TARGET,
        "context": args.context,
        "tokens": args.tokens,
        "budget": args.budget,
        "shape": args.shape,
        "layers": args.layers,
        "batch": args.batch,
        "prefill_s": prefill,
        "prefill_chunk": args.context + PAGE_SIZE,
        "rows": [asdict(row) for row in rows],
        "flags": [flag for flag in flags if not flag.startswith(str(folder))],
        "environment": environment(),
    }


def server_flags(folder: Path, args: argparse.Namespace) -> tuple[str, ...]:
    """What both servers share; writes the model's configuration to `folder`."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPES[args.shape].cut(args.layers)))
    prompt = args.context + PAGE_SIZE
    held = args.context + (args.batch + 1) * (args.tokens + 3 * PAGE_SIZE)
    return (
        *("--model-path", str(model), "--load-format", "dummy", "--skip-tokenizer-init"),
        *("--device", args.device, "--dtype", "bfloat16", "--page-size", str(PAGE_SIZE)),
        *room(prompt + args.tokens, held, PAGE_SIZE),
        *("--max-running-requests", str(max(4, args.batch))),
        *("--chunked-prefill-size", str(prompt), "--max-prefill-tokens", str(prompt)),
        # Left to itself SGLang sets most of the memory aside for a chunk of this size.
        *("--mem-fraction-static", "0.6", "--sleep-on-idle"),
        # Such a chunk can take longer than the five minutes after which SGLang ends itself.
        *("--watchdog-timeout", "7200"),
    )


def _row(
    name: str, server: str, runs: Sequence[Generation], together: float | None, dense: float
) -> Row:
    rates = tuple(run.tokens_per_s for run in runs)
    reports = [run.report for run in runs if run.report]
    there = sum(report["tokens_in_context"] for report in reports)
    read = sum(report["tokens_attended"] for report in reports) / there if there else 1.0
    steps = median(ms for run in runs for ms in run.step_ms)
    rate = median(rates)
    return Row(name, server, rate, rates, steps, together, read, rate / dense)


def _header(result: dict[str, Any]) -> str:
    where = result["environment"]
    return (
        f"\n{where['machine']}, {where['threads'] or 'default'} threads; SGLang {where['sglang']}, "
        f"torch {where['torch']}, commit {where['commit']}, {where['when']}\n"
        f"{result['layers']} layers of {result['shape']}'s shape, bf16, random weights; "
        f"{result['context']:,} tokens of context, {result['tokens']} generated; prefill "
        f"{result['prefill_s'][DENSE]:.0f} s (torch_native), {result['prefill_s'][SPARSE]:.0f} s "
        "(sparsekv), one chunk\n"
    )


def _table(rows: Sequence[Row]) -> str:
    head = (
        f"{'':14s}{'tokens/s':>10s}{'ms/step':>10s}{'batch t/s':>11s}{'KV read':>9s}{'ratio':>8s}"
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        batch = "-" if row.batch_tokens_per_s is None else f"{row.batch_tokens_per_s:.2f}"
        lines.append(
            f"{row.name:14s}{row.tokens_per_s:>10.2f}{row.step_ms:>10.1f}{batch:>11s}"
            f"{row.kv_read_fraction:>9.1%}{row.ratio:>7.2f}x"
        )
    return "\n".join(lines)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.serve.decode", description="decode of a whole server"
    )
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--json", type=Path, help="where to write the result; must not exist")
    parser.add_argument(GO_ON, action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--context", type=int, default=16_384, help="tokens of prompt")
    parser.add_argument("--tokens", type=int, default=33, help="tokens to generate per repeat")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="also run so many requests together")
    parser.add_argument("--budget", type=int, default=2048, help="tokens quest reads per KV head")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="of the model")
    parser.add_argument("--layers", type=int, help="first layers of it; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    whole = SHAPES[args.shape].layers
    args.layers = whole if args.layers is None else args.layers
    if not 1 <= args.layers <= whole:
        parser.error(f"--layers must be in [1, {whole}], got {args.layers}")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
