"""Floors, gains and limits of one decode step.

    python -m bench.model --gpu h200 --context 32768 --batch 8 --page 64 --budget 2048

Byte floors, unless a measured time is put in the place of one. Microseconds throughout.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from bench.model import (
    GPUS,
    METADATA,
    MODELS,
    Costs,
    Floors,
    Gpu,
    Model,
    Workload,
    break_even,
    break_even_by_bytes,
    capacity,
    fa3_us,
    find,
    floors,
    max_selection_for_step,
    max_selection_us,
    shared_floors,
    spare_us,
)

GAINS = (1.0, 1.5, 2.0)


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Everything the model says of one workload, as JSON has it.

    Raises:
        ValueError: an argument is out of its range.
    """
    gpu, model = find(GPUS, "gpu", args.gpu), find(MODELS, "model", args.model)
    work = Workload(args.context, args.batch, args.page, args.budget, args.method)
    dense, attend = args.dense_us, args.attend_us
    if args.fa3:
        dense, attend = (fa3_us(tokens, work.batch) for tokens in (work.context, work.budget))
    costs = Costs(args.selection_us, args.launch_us, dense_us=dense, attend_us=attend)
    found = floors(gpu, model, work, costs)
    return {
        "gpu": asdict(gpu),
        "model": asdict(model),
        "workload": asdict(work),
        "costs": asdict(costs),
        "layer_us": {
            "dense": found.dense_us,
            "selection": found.selection_us,
            "attend": found.attend_us,
            "sparse": found.sparse_us,
        },
        "step_us": {
            "weights": found.weights_us,
            "dense_attention": found.dense_attention_us,
            "sparse_attention": found.sparse_attention_us,
            "dense": found.dense_step_us,
            "sparse": found.sparse_step_us,
        },
        "gain": {"attention": found.attention_gain, "step": found.step_gain},
        "break_even_tokens": _break_even(gpu, model, work, costs),
        "max_selection_us": _most(found),
        "shared_prefix_us": asdict(shared_floors(gpu, model, work)),
        "requests_that_fit": capacity(gpu, model, work.context),
    }


def _break_even(gpu: Gpu, model: Model, work: Workload, costs: Costs) -> dict[str, float | None]:
    by_bytes, at_price = break_even_by_bytes(model, work), None
    if costs.selection_us is not None:
        fixed = costs.launches * costs.launch_us
        at_price = break_even(gpu, model, work, costs.selection_us, fixed)
    return {
        "bytes": by_bytes if by_bytes < float("inf") else None,
        "at_this_selection": at_price,
    }


def _most(found: Floors) -> dict[str, Any]:
    return {
        "attention": {
            str(gain): max_selection_us(found.dense_us, found.attend_us, gain) for gain in GAINS
        },
        "step": {str(gain): max_selection_for_step(found, gain) for gain in GAINS},
        "above_this_for_10_percent_of_the_step": spare_us(found, 0.1),
    }


def table(found: dict[str, Any]) -> str:
    """What `describe` found, for reading."""
    gpu, work, layer, step = (found[key] for key in ("gpu", "workload", "layer_us", "step_us"))
    shared, even, most = (
        found[key] for key in ("shared_prefix_us", "break_even_tokens", "max_selection_us")
    )
    costs = {**found["costs"], "launches": None, "launch_us": found["costs"]["launch_us"] or None}
    given = ", ".join(f"{name} {us:g}" for name, us in costs.items() if us is not None)
    at_price = even["at_this_selection"]
    lines = [
        f"{found['model']['name']} on {gpu['name']}, {gpu['tb_per_s']} TB/s: {gpu['source']}",
        f"{work['method']}, context {work['context']:,}, batch {work['batch']}, page "
        f"{work['page']}, budget {work['budget']:,}; in place of floors: {given or 'nothing'}",
        "",
        f"{'microseconds':24}{'dense':>12}{'sparse':>12}{'gain':>9}",
        f"{'attention, a layer':24}{layer['dense']:12,.1f}{layer['sparse']:12,.1f}"
        f"{found['gain']['attention']:8.2f}x",
        f"{'  selection':36}{layer['selection']:12,.1f}",
        f"{'  attend':36}{layer['attend']:12,.1f}",
        f"{'attention, a step':24}{step['dense_attention']:12,.0f}"
        f"{step['sparse_attention']:12,.0f}",
        f"{'weights':24}{step['weights']:12,.0f}{step['weights']:12,.0f}",
        f"{'step':24}{step['dense']:12,.0f}{step['sparse']:12,.0f}{found['gain']['step']:8.2f}x",
        "",
        f"break-even by bytes      {_tokens(even['bytes'])}",
        *([f"break-even at this price {_tokens(at_price)}"] if at_price else []),
        "selection, a layer, at most: "
        + ", ".join(f"{us:.1f} for {gain}x attention" for gain, us in most["attention"].items()),
        f"  {most['above_this_for_10_percent_of_the_step']:.1f} more cost 10 % of the step",
        f"all share one prefix, attention of a step: cascade {shared['cascade_us']:,.0f}, sparse "
        f"{shared['sparse_us']:,.0f}, sparse with metadata read once {shared['shared_us']:,.0f}",
        f"requests that fit: {found['requests_that_fit']:.1f}",
    ]
    return "\n".join(lines)


def _tokens(count: float | None) -> str:
    return "never" if count is None else f"{count:,.0f} tokens"


def main(argv: Sequence[str] | None = None) -> int:
    """Print; arguments that make no sense exit with 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.fa3 and (args.dense_us is not None or args.attend_us is not None):
        parser.error("--fa3 brings its own --dense-us and --attend-us.")
    try:
        found = describe(args)
    except ValueError as error:
        parser.error(f"{error}.")
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="bench.model", description=__doc__)
    parser.add_argument("--gpu", default="h200", help=", ".join(GPUS))
    parser.add_argument("--model", default="llama-3.1-8b", help=", ".join(MODELS))
    parser.add_argument("--context", type=int, default=32768, help="tokens per request")
    parser.add_argument("--batch", type=int, default=1, help="requests")
    parser.add_argument("--page", type=int, default=64, help="tokens per unit that is scored")
    parser.add_argument("--budget", type=int, default=2048, help="tokens per request and KV head")
    parser.add_argument("--method", default="quest", help=", ".join(METADATA))
    parser.add_argument("--selection-us", type=float, help="score and select, per layer")
    parser.add_argument("--launch-us", type=float, default=0.0, help="each of two more launches")
    parser.add_argument("--dense-us", type=float, help="measured dense attention, per layer")
    parser.add_argument("--attend-us", type=float, help="measured attention over the budget")
    parser.add_argument("--fa3", action="store_true", help="FA3's times for both")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
