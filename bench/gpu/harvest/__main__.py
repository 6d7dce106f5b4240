"""The first minutes on a GPU, in one command; what each stage answers is in `docs/gpu.md`.

Exits with 0, with 1 if a check or a job failed, with 2 where there is no GPU or the arguments are
wrong. Without a GPU there are `--rehearse`, and `--only compile`, which compiles for a Hopper.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from bench.gpu.harvest.jobs import Stage

SECONDS = 410.0
WRITING = 5.0
"""Of the bound, kept for the archive."""
NO_GPU = "bench.gpu.harvest: no NVIDIA GPU was found here (torch.cuda.is_available() is false)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    start = time.monotonic()
    parser = _parser()
    args = parser.parse_args(argv)
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import torch
    except ImportError:
        print("bench.gpu.harvest: torch is not installed.", file=sys.stderr)
        return 2
    import bench.gpu.checkout  # noqa: F401
    from bench.gpu.harvest.jobs import JOBS, STAGES

    chosen = [stage for stage in STAGES if stage.name in args.only or not args.only]
    for name in set(args.only) - {stage.name for stage in STAGES}:
        known = ", ".join(stage.name for stage in STAGES)
        parser.error(f"stage must be one of {known}, got {name}")
    ahead = {stage.name for stage in chosen} == {"compile"} or args.child in JOBS
    if not (torch.cuda.is_available() or args.rehearse or ahead):
        print(NO_GPU, file=sys.stderr)
        return 2
    if args.layer:
        return _layer()
    if args.child:
        return _child(JOBS[args.child].run, args)
    return _whole(chosen, args, start + args.seconds - WRITING)


def _whole(chosen: "Sequence[Stage]", args: argparse.Namespace, end: float) -> int:
    """Stages until `end`, or their rehearsal."""
    from bench.gpu.harvest.finish import harvest, rehearse

    logs, archive = args.logs.resolve(), args.archive and args.archive.resolve()
    logs.mkdir(parents=True, exist_ok=True)
    if args.rehearse:
        return rehearse(chosen, logs, archive)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return harvest(chosen, logs, archive, end, args.commit)
    except KeyboardInterrupt:
        return 130


def _child(run: object, args: argparse.Namespace) -> int:
    """One job, in this process, when it is told its seconds; what fails is an entry of its log."""
    import torch

    from bench.gpu.kernels import Run
    from bench.gpu.log import Log

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert callable(run)
    said = sys.stdin.readline()
    if not said:
        return 0  # nobody waits for it any more
    log = Log(args.logs / f"{args.child}.jsonl", time.monotonic() + float(said))
    run(Run(log, device, quick=True, rehearse=args.rehearse, ungated=True))
    return 0


def _layer() -> int:
    """One layer, for a profiler."""
    import torch

    from bench.gpu.harvest.profile import layer
    from bench.gpu.kernels import Run
    from bench.gpu.log import Log

    layer(Run(Log(), torch.device("cuda", 0)))
    torch.cuda.synchronize()
    return 0


def _interrupt(*_: object) -> NoReturn:
    """A termination ends the jobs and writes what there is, as Ctrl-C does."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.gpu.harvest", description=__doc__)
    logs = Path(__file__).resolve().parents[3] / "build" / "harvest"
    parser.add_argument(
        "--archive", type=Path, help="pack everything into this .tgz, 48 MiB at most"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="bound (default 410)")
    parser.add_argument("--logs", type=Path, default=logs, help="folder of logs and report.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="stages to run")
    parser.add_argument("--commit", help="commit of a copy without its history")
    parser.add_argument("--rehearse", action="store_true", help="toy shapes on a CPU, no times")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--layer", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
