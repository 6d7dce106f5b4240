"""The command line of the sweep."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from bench.serve.grid import OURS, PAGE_SIZE, WORKLOADS, Grid
from bench.serve.model import QWEN_LAYERS
from sgl_sparsekv.selection.registry import method_names
from sgl_sparsekv.tooling.journal import GO_ON

RESULTS = Path(__file__).parents[1] / "results"
LIMITS = ("ttft", "tpot", "e2el")
CPU: dict[str, Any] = {
    "peers": "torch_native",
    "methods": "quest,clusterkv",
    "budgets": "512,2048",
    "contexts": "4k,8k,16k",
    "load_contexts": "4k",
    "concurrency": "1,2,4,8",
    "layers": 6,
    "tokens": 32,
}
CUDA: dict[str, Any] = {
    **CPU,
    "peers": "flashinfer,fa3",
    "budgets": "1024,2048",
    "contexts": "8k,32k,128k",
    "load_contexts": "32k",
    "concurrency": "1,8,32",
    "layers": QWEN_LAYERS,
    "tokens": 256,
}
QUICK: dict[str, Any] = {
    **CPU,
    "methods": "quest",
    "budgets": "256",
    "contexts": "1k,2k",
    "load_contexts": "2k",
    "concurrency": "1,2",
    "workloads": "cold,hit,shared,program",
    "layers": 2,
    "tokens": 16,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 and a sentence if it is wrong.

    Returns:
        Its `grid` is the sweep; `json` and `svg` are files to write, not there yet; `journal` is
        where points are kept until then.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    defaults = QUICK if args.quick else CUDA if args.device == "cuda" else CPU
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    try:
        args.grid = _grid(args)
        _paths(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _grid(args: argparse.Namespace) -> Grid:
    budgets = _each("budgets", args.budgets, _tokens)
    contexts = _each("contexts", args.contexts, _tokens)
    methods = _each("methods", args.methods, str)
    for method in methods:
        if method not in method_names():
            names = ", ".join(method_names())
            raise ValueError(f"methods must be of {names}, got {method}")
    load_contexts = _each("load-contexts", args.load_contexts, _tokens)
    for name, found in (("contexts", contexts), ("load-contexts", load_contexts)):
        if any(context % PAGE_SIZE or context < 2 * PAGE_SIZE for context in found):
            raise ValueError(f"{name} must be multiples of {PAGE_SIZE} tokens, got {found}")
    peers = _each("peers", args.peers, str)
    if OURS in peers:
        raise ValueError(f"peers must be attention backends of SGLang's own, got {OURS}")
    loads = args.load_budgets
    return Grid(
        device=args.device,
        peers=peers,
        methods=tuple(method for method in methods if method != "full"),
        budgets=budgets,
        contexts=contexts,
        load_budgets=_each("load-budgets", loads, _tokens) if loads else budgets[:1],
        load_contexts=load_contexts,
        concurrency=_each("concurrency", args.concurrency, _count),
        rates=_each("rates", args.rates, _positive) if args.rates else (),
        requests=_count(args.requests),
        rounds=_count(args.rounds),
        tokens=_count(args.tokens),
        goodput=dict(_limit(one) for one in args.goodput.split(",")),
        workloads=_of("workloads", args.workloads or ",".join(WORKLOADS), WORKLOADS),
        seed=args.seed,
        timeout=_count(args.timeout),
    )


def _paths(args: argparse.Namespace) -> None:
    args.journal = RESULTS / f"serving-{args.device}.part.jsonl"
    if args.json is not None:
        args.journal = args.json.with_suffix(".part.jsonl")
    else:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        args.json = RESULTS / f"serving-{args.device}-{stamp}.json"
    if args.svg is None:
        args.svg = args.json.with_suffix(".svg")
    for path in (args.json, args.svg):
        if path.exists():
            raise ValueError(f"{path} is there already and is not overwritten")
    if args.json == args.svg:
        raise ValueError(f"json and svg must be two files, got {args.json}")


def _each(name: str, text: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        found = tuple(read(one.strip()) for one in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if len(set(found)) != len(found) or "" in found:
        raise ValueError(f"{name} must be different values separated by commas, got {text!r}")
    return found


def _of(name: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found = _each(name, text, str)
    for one in found:
        if one not in known:
            raise ValueError(f"{name} must be of {', '.join(known)}, got {one}")
    return found


def _tokens(text: str) -> int:
    scale = 1024 if text[-1:] in ("k", "K") else 1
    return _count(text[:-1] if scale > 1 else text) * scale


def _count(text: str | int) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise ValueError(f"a whole number above 0 is needed, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(f"a number above 0 is needed, got {text!r}")
    return found


def _limit(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    if name not in LIMITS:
        raise ValueError(f"goodput must be of {', '.join(LIMITS)}:MS, got {text!r}")
    return name, _positive(limit)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bench.serve", description="SGLang's serving benchmarks, swept")
    add = parser.add_argument
    add("--quick", action="store_true", help="two or three minutes: a small model, short prompts")
    add("--json", type=Path, help="result; default: bench/results/serving-DEVICE-WHEN.json")
    add("--svg", type=Path, help="picture; default: beside the result")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--model", type=Path, help="folder of a model; default: Qwen's shape, random weights")
    add("--layers", type=int, help="of the default model")
    add("--peers", help="dense attention backends of SGLang's own")
    add("--methods", help="selection methods; full is always there")
    add("--contexts", help="tokens of a single-stream prompt, as 8192 or 8k")
    add("--budgets", help="tokens per KV head, of single-stream points")
    add("--load-contexts", help="tokens of a shared prefix")
    add("--load-budgets", help="budgets of all other points; default: the first of --budgets")
    add("--concurrency", help="requests at a time on a shared prefix")
    add("--rates", help="also offer so many requests per second")
    add("--requests", default="1", help="requests of a single-stream point")
    add("--rounds", default="2", help="requests of a load point for each at a time")
    add("--tokens", help="tokens of an answer")
    add("--goodput", default="ttft:5000,tpot:50", help="limits in milliseconds: ttft, tpot, e2el")
    add("--workloads", help=f"of {', '.join(WORKLOADS)}; default: all")
    add("--server-flags", default="", help="flags that every server gets, in one argument")
    add(GO_ON, action="store_true", help="go on with a run that was stopped")
    add("--seed", type=int, default=1)
    add("--timeout", default="900", help="seconds that a point may take")
    return parser
