"""Everything a GPU must tell, in one command; what each part answers is in `docs/gpu.md`.

Exits with 0, with 1 if a gate or a part failed, with 2 where there is no GPU or the arguments are
wrong.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NO_GPU = "bench.gpu: no NVIDIA GPU was found here (torch.cuda.is_available() is false)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import torch
    except ImportError:
        print("bench.gpu: torch is not installed.", file=sys.stderr)
        return 2
    if args.wheels and not args.child and torch.cuda.is_available():
        _reinstalled(args.wheels)
    if not args.rehearse and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    import bench.gpu.checkout  # noqa: F401
    from bench.gpu.parts import PARTS

    for name in (*args.only, *filter(None, [args.child])):
        if name not in PARTS:
            parser.error(f"part must be one of {', '.join(PARTS)}, got {name}")
    if args.child:
        return _child(args.child, args)
    if args.rehearse:
        from bench.gpu.rehearsal import rehearse

        return rehearse(args.only)
    from bench.gpu.run import Plan, run_all

    chosen = [part for name, part in PARTS.items() if name in args.only or not args.only]
    asked = (args.out, args.logs, args.quick, args.seconds, args.commit)
    try:
        return run_all(Plan(chosen, *asked, resume=args.resume))
    except ValueError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2


def _child(name: str, args: argparse.Namespace) -> int:
    """One part, in this process; failures are in its log."""
    import torch

    from bench.gpu.kernels import Run
    from bench.gpu.log import Log
    from bench.gpu.parts import PARTS

    deadline = None if args.seconds is None else time.monotonic() + args.seconds
    device = torch.device("cpu") if args.rehearse else torch.device("cuda", 0)
    run = Run(Log(args.log, deadline), device, args.quick, args.rehearse)
    run.log.attempt(name, lambda: PARTS[name].run(run))
    return 0


def _reinstalled(folder: Path) -> None:
    """Install what is missing, and say what came of it."""
    import importlib

    from bench.gpu.log import line
    from bench.gpu.wheels import install

    for check in install(folder):
        print(line(check), flush=True)
    importlib.invalidate_caches()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    results = Path(__file__).resolve().parents[1] / "results"
    logs = results.parents[1] / "build" / "gpu"
    parser.add_argument("--out", type=Path, default=results, help="folder of results")
    parser.add_argument("--logs", type=Path, default=logs, help="folder of logs and report.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="parts to run")
    parser.add_argument("--quick", action="store_true", help="three shapes, fewer repeats")
    parser.add_argument("--seconds", type=float, help="start nothing new after so many")
    parser.add_argument("--wheels", type=Path, help="install what is missing from this folder")
    parser.add_argument("--commit", help="commit of a copy without its history")
    parser.add_argument("--resume", action="store_true", help="keep what finished parts found")
    parser.add_argument("--rehearse", action="store_true", help="toy shapes on a CPU, no times")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
