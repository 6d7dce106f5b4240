"""`sparsekv eval`: one command per question about answers."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import evaluations

if TYPE_CHECKING:
    from ..evaluation.client import Client, ServerInfo
    from ..evaluation.model import Model
    from ..evaluation.results import Results
    from ..evaluation.settings import Settings
    from ..evaluation.tasks.base import Task
    from ..tooling.progress import Progress

WITHOUT_ANSWERS = ("perplexity", "fidelity", "generate")
"""Their number is no share of right answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    tasks = parser.add_subparsers(
        dest="task", metavar="TASK", required=True, parser_class=type(parser)
    )
    for name, evaluation in evaluations.EVALUATIONS.items():
        task = tasks.add_parser(name, help=evaluation.text, description=evaluation.text)
        _add_common(task, name)
        evaluation.add_arguments(task)


def _add_common(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--url", help="a running server; else one is started for --model")
    parser.add_argument(
        "--model", type=Path, help="the model's folder; with --url the server's if left out"
    )
    parser.add_argument("--methods", default="full,quest,streaming", help="a list, or all")
    parser.add_argument("--budget", default="512", help="tokens, or shares such as 0.05; a list")
    parser.add_argument("--dense-layers", type=int, help="first layers that read everything")
    parser.add_argument("--concurrency", type=int, default=1, help="questions at the same time")
    parser.add_argument("--out", type=Path, default=Path(f"{name}.jsonl"), help="results")
    parser.add_argument("--kvpress", type=Path, help="also write kvpress's folders, into this one")
    parser.add_argument("--resume", action="store_true", help="go on with the file of --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Run it: 0 when every cell was asked, right or wrong; 2 when it had to stop."""
    from ..errors import SparseKVError
    from ..tooling.journal import check_free
    from ..tooling.progress import Progress

    check_free(args.out, args.resume)
    if args.kvpress is not None and args.task in WITHOUT_ANSWERS:
        raise ValueError(f"kvpress must be left out for {args.task}: it scores no answers")
    progress = Progress(quiet=args.quiet)
    try:
        return _evaluate(args, progress)
    except SparseKVError as error:
        print(f"sparsekv eval: {error}", file=sys.stderr)
        return 2


def _evaluate(args: argparse.Namespace, progress: "Progress") -> int:
    from ..evaluation.client import Client
    from ..evaluation.grid import Grid, check_length, check_server
    from ..evaluation.model import Model
    from ..evaluation.results import Results

    info = None if args.url is None else Client(args.url).info()
    model = Model(_folder(args, info), None if info is None else info.context_length)
    settings = _settings(args, model, info)
    task = evaluations.EVALUATIONS[args.task].make(args, model)
    check_length(task, model.context_length)
    results = Results(
        args.out, task.name, {**settings.as_dict(), **task.settings()}, resume=args.resume
    )
    task.build(task.parts()[0])  # what cannot be built is said before a server is started
    with _connected(args, settings, task, progress) as client:
        info = client.info()
        check_server(task, info)
        grid = Grid(settings, task, client, progress.count)
        try:
            grid.run(results, _about(info, model, settings))
        finally:
            progress.say(f"{len(results.cells)} cells are there")
            _finish(results, args)
    return 0


def _folder(args: argparse.Namespace, info: "ServerInfo | None") -> Path:
    if args.model is not None:
        folder: Path = args.model
        return folder
    if info is None:
        raise ValueError("one of --url and --model must be given")
    return Path(info.model)


@contextmanager
def _connected(
    args: argparse.Namespace, settings: "Settings", task: "Task", progress: "Progress"
) -> Iterator["Client"]:
    """The running server, or one that is started and ended."""
    from ..evaluation.client import Client, EvaluationStopped
    from ..evaluation.server import server_spec
    from ..tooling.servers import serve

    if args.url is not None:
        yield Client(args.url)
        return
    spec = server_spec(Path(settings.model), settings, task)
    with serve([spec], args.out.with_suffix(".logs"), progress) as servers:
        try:
            yield Client(servers["sparsekv"].url)
        except EvaluationStopped:
            servers["sparsekv"].check()  # one that died explains more than the connection
            raise


def _settings(args: argparse.Namespace, model: "Model", info: "ServerInfo | None") -> "Settings":
    from ..evaluation.settings import Settings, parse_budgets, parse_methods
    from ..selection import method_names

    return Settings(
        model=str(model.folder),
        methods=parse_methods(args.methods, info.methods if info else method_names()),
        budgets=parse_budgets(args.budget),
        dense_layers=model.dense_layers if args.dense_layers is None else args.dense_layers,
        concurrency=args.concurrency,
    )


def _about(info: "ServerInfo", model: "Model", settings: "Settings") -> dict[str, object]:
    """What a result file says beside its settings."""
    from ..evaluation.bytes import bytes_read
    from ..tooling.environment import environment

    return {
        "server": info.versions,
        "environment": environment(),
        **bytes_read(model, settings.methods),
    }


def _finish(results: "Results", args: argparse.Namespace) -> None:
    """What the cells there come to, on stdout, as pictures and as an export."""
    from ..evaluation.export import write_kvpress
    from ..evaluation.picture import write_picture
    from ..evaluation.summary import table
    from ..report import write_page

    if not results.cells:
        return
    page = write_page([results.path], results.path.with_suffix(".html"))
    written = [args.out, page, write_picture(results.path)]
    if args.kvpress is not None:
        written += write_kvpress(results.path, args.kvpress)
    print(f"{table(results.cells)}\nsee {', '.join(str(path) for path in written if path)}")
