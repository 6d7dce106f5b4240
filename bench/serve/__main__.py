"""SGLang's own benchmark tools over methods, budgets, contexts, concurrency and dense peers.

    python -m bench.serve [--quick] [--json FILE] [--svg FILE] [--resume]

One server per dense peer and one of ours, with the same flags; its requests name their method. One
JSON, one picture; until they are written, each point is kept in FILE's `.part.jsonl` and a run that
was stopped goes on with `--resume`. Exit status 1 if a point failed, 2 if nothing was run, 130 if
it was stopped.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from bench.serve.arguments import parse
from bench.serve.grid import PAGE_SIZE, Grid
from bench.serve.model import Model, named_model, write_model
from bench.serve.picture import picture
from bench.serve.results import Header, Result, save
from bench.serve.servers import differences, specs
from bench.serve.sweep import Sweep
from bench.serve.table import text
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.journal import Journal
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.room import KEPT, answered


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print; 0 if every point was measured, 1 if not, 2 if nothing was run."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    try:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.svg.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="bench-serve-"))
        model = named_model(args.model) if args.model else write_model(folder / "m", args.layers)
        _check_fits(args.grid, model)
        asked = {"grid": asdict(args.grid), "model": model.words, "flags": args.server_flags}
        journal = Journal(args.journal, asked, args.resume, progress)
    except (ValueError, OSError) as error:
        print(f"bench.serve: {error}", file=sys.stderr)
        return 2
    progress.say(f"logs are in {folder}")
    try:
        result = measure(args, model, folder, progress, journal)
    except KeyboardInterrupt:
        print(f"bench.serve: {journal.stopped()}", file=sys.stderr)
        return 130
    save(result, args.json, {str(folder): "FOLDER", sys.executable: "python"})
    with args.svg.open("x") as file:
        file.write(picture(result))
    journal.finish()
    print(text(result))
    print(f"\n{args.json}\n{args.svg}")
    return 1 if result.failures else 0


def _check_fits(grid: Grid, model: Model) -> None:
    """Whether the model takes the longest request.

    Raises:
        ValueError: it does not.
    """
    needed = grid.longest + PAGE_SIZE + grid.tokens
    if model.positions is not None and needed > answered(model.positions):
        raise ValueError(
            f"contexts must leave room for {grid.tokens} tokens, a page and the {KEPT} that SGLang "
            f"keeps within the model's {model.positions:,}, got {needed:,} together"
        )


def measure(
    args: Namespace, model: Model, folder: Path, progress: Progress, journal: Journal
) -> Result:
    """Every point of the grid, with its header."""
    start, before = time.monotonic(), os.getloadavg()[0]
    found = specs(args.grid, model, shlex.split(args.server_flags))
    where = environment()
    sweep = Sweep(args.grid, model, found, folder, progress, journal)
    sweep.run()
    header = Header(
        environment=where,
        device=args.device,
        gpu=gpus() if args.device == "cuda" else [],
        model=model.words,
        command=["python", "-m", "bench.serve", *sys.argv[1:]],
        servers=sweep.commands,
        differences=differences(found),
        goodput=args.grid.goodput,
        grid={key: list(v) if isinstance(v, tuple) else v for key, v in asdict(args.grid).items()},
        load_average=[before, os.getloadavg()[0]],
        seconds=time.monotonic() - start,
    )
    return Result(header, sweep.rows, sweep.failures)


def _interrupt(*_: object) -> NoReturn:
    """A termination ends the sweep as Ctrl-C does: with what it started."""
    raise KeyboardInterrupt


def gpus() -> list[str]:
    """Name, driver and memory of each GPU; empty where no driver answers."""
    query = "--query-gpu=name,driver_version,memory.total"
    command = ("nvidia-smi", query, "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
