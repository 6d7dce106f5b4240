"""`sparsekv eval`: one command per question about answers; so far `needle`."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..demo.progress import Progress
    from ..evaluation.client import Client
    from ..evaluation.settings import Settings

DENSE_LAYERS_OF_SMALL_MODELS = 0
"""The package's own models have few layers; dense ones would answer for the sparse ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("task", choices=("needle",), help="a grid of lengths and depths")
    parser.add_argument("--url", help="a running server; else one is started for --model")
    parser.add_argument(
        "--model", type=Path, help="the model's folder; with --url the server's if left out"
    )
    parser.add_argument("--lengths", default="4k,8k", help="tokens of prompt and answer, 4k,8k")
    parser.add_argument("--depths", type=int, default=5, help="rows of the map")
    parser.add_argument("--methods", default="full,quest,streaming", help="a list, or all")
    parser.add_argument("--budget", default="512", help="tokens, or a share such as 0.05")
    parser.add_argument("--dense-layers", type=int, help="first layers that read everything")
    parser.add_argument(
        "--protocol", default="prefilled", help="prefilled, or decoded: the question, too"
    )
    parser.add_argument("--samples", type=int, default=1, help="documents per length")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--out", type=Path, default=Path("needle.jsonl"), help="results")
    parser.add_argument("--resume", action="store_true", help="go on with the file of --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Run it: 0 when every cell was asked, right or wrong; 2 when it had to stop."""
    from ..demo.progress import Progress
    from ..errors import SparseKVError
    from ..evaluation.results import check_free

    check_free(args.out, args.resume)
    progress = Progress(quiet=args.quiet)
    try:
        return _evaluate(args, progress)
    except SparseKVError as error:
        print(f"sparsekv eval: {error}", file=sys.stderr)
        return 2


def _evaluate(args: argparse.Namespace, progress: "Progress") -> int:
    from ..demo.result import environment
    from ..evaluation.needles import builder_for, token_counter
    from ..evaluation.results import Results
    from ..evaluation.run import NeedleRun, check_server, write_picture
    from ..evaluation.summary import table

    settings, connect = _prepare(args)
    folder = Path(settings.model)
    results = Results(args.out, settings, args.resume)
    build = builder_for(settings.documents, folder)
    build(settings.lengths[0], settings.depths, settings.seed)  # too short is said before starting
    with connect(progress) as client:
        info = client.info()
        check_server(settings, info)
        about = {"server": info.versions, "environment": environment()}
        run = NeedleRun(settings, client, build, token_counter(folder), progress.wait)
        try:
            run.run(results, about)
        finally:
            progress.say(f"{len(results.cells)} cells are there")
            picture = write_picture(results, settings)
            if picture is not None:
                print(f"{table(results.cells)}\nsee {args.out} and {picture}")
    return 0


def _prepare(args: argparse.Namespace) -> tuple["Settings", Callable[["Progress"], Any]]:
    """Settings, and how to get at a server; nothing is started yet."""
    from ..evaluation.client import Client, EvaluationStopped
    from ..evaluation.needles import kind_of
    from ..evaluation.server import longest_context
    from ..evaluation.settings import Settings, parse_budget, parse_lengths, parse_methods
    from ..selection import method_names

    if args.url is None and args.model is None:
        raise ValueError("one of --url and --model must be given")
    client = None if args.url is None else Client(args.url)
    info = None if client is None else client.info()
    folder = Path(info.model) if args.model is None and info is not None else args.model
    kind = kind_of(folder)
    small = DENSE_LAYERS_OF_SMALL_MODELS if kind != "prose" else None
    settings = Settings(
        model=str(folder),
        documents=kind,
        lengths=parse_lengths(args.lengths),
        depths=args.depths,
        methods=parse_methods(args.methods, info.methods if info else method_names()),
        budget=parse_budget(args.budget),
        dense_layers=small if args.dense_layers is None else args.dense_layers,
        protocol=args.protocol,
        samples=args.samples,
        seed=args.seed,
    )
    limit = longest_context(folder)
    if limit is not None and max(settings.lengths) > limit:
        raise EvaluationStopped(
            f"lengths must be at most the model's context of {limit} tokens, "
            f"got {max(settings.lengths)}"
        )

    @contextmanager
    def connect(progress: "Progress") -> Iterator["Client"]:
        from ..demo.servers import serve
        from ..evaluation.server import server_spec

        if client is not None:
            yield client
            return
        logs = args.out.with_suffix(".logs")
        with serve([server_spec(folder, settings)], logs, progress) as servers:
            try:
                yield Client(servers["sparsekv"].url)
            except EvaluationStopped:
                servers["sparsekv"].check()  # one that died explains more than the connection
                raise

    return settings, connect
