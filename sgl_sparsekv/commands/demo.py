"""`sparsekv demo`: one long document read exactly, and a real model reading a real text."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for results")
    parser.add_argument(
        "--model", default="analytic", metavar="NAME", help="analytic, trained, or a model's folder"
    )
    parser.add_argument("--context", type=int, default=16_384, help="tokens of shared document")
    parser.add_argument("--questions", type=int, default=16, help="how many to ask")
    parser.add_argument(
        "--method", default="quest", metavar="NAME", help="how the context is read sparsely"
    )
    parser.add_argument(
        "--budget", type=int, default=512, help="tokens that the method and streaming read"
    )
    parser.add_argument(
        "--real",
        default="smollm2",
        metavar="MODEL",
        help="of the second act: smollm2 (fetched), a chat model's folder, or none",
    )
    parser.add_argument("--device", default="auto", help="kernels: auto, cpu or reference")
    parser.add_argument("--seed", type=int, default=0, help="another document and other questions")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Run it: 0 if every condition holds, else 1."""
    from ..config import RequestOptions
    from ..demo.build import build_scenario
    from ..demo.options import FETCHED, NONE, DemoOptions
    from ..demo.run import report_lines, run_demo
    from ..errors import SparseKVError
    from ..tooling.progress import Progress

    if args.method in ("full", "streaming"):
        raise ValueError(f"--method must be one that looks at the query, got {args.method!r}")
    RequestOptions(
        method=args.method, budget=args.budget
    )  # refused here and not after a minute of starting servers
    options = DemoOptions(args.out, args.budget, args.device, args.method, args.real)
    if args.real not in (FETCHED, NONE) and not (Path(args.real) / "config.json").is_file():
        raise ValueError(f"--real must be smollm2, none or a model's folder, got {args.real!r}")
    progress = Progress(quiet=args.quiet)
    args.out.mkdir(parents=True, exist_ok=True)
    scenario = build_scenario(args.model, args.context, args.questions, args.seed, args.out)
    progress.say(
        f"{scenario.model} model, a document of {scenario.document_tokens:,} tokens, "
        f"{len(scenario.questions)} questions"
    )
    try:
        outcome = run_demo(scenario, options, progress)
    except SparseKVError as error:
        print(f"sparsekv demo: {error}", file=sys.stderr)
        return 1
    print(report_lines(outcome, args.out))
    return outcome.exit_code
