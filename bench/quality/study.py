"""The command of a study: dumps of models in, a table and a file of rows per model out."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from bench.quality.__main__ import _subject, _tokens
from bench.quality.dump import Dump
from bench.quality.results import FOLDER
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.tooling.environment import environment

R = TypeVar("R")


@dataclass(frozen=True)
class Study(Generic[R]):
    """What a study measures and how it is told.

    Attributes:
        name: of its files: `bench/results/<name>-<model>-<when>.json`.
        measure: (dump, context, every so many-th layer, ops) -> rows.
        table: rows as Markdown.
        as_json: a row and all rows of its model -> what is saved of it.
    """

    name: str
    measure: Callable[[Dump, int, int, Ops], Iterable[R]]
    table: Callable[[Sequence[R]], str]
    as_json: Callable[[R, Sequence[R]], dict[str, Any]]

    def run(self, argv: Sequence[str] | None) -> list[R] | None:
        """Measure the named models and save each; None, and one sentence, for bad arguments."""
        prog = f"bench.quality.{self.name}"
        parser = argparse.ArgumentParser(prog=prog)
        parser.add_argument("models", nargs="+", metavar="MODEL", help="trained, text, or a folder")
        parser.add_argument("--text", type=Path, help="what a folder's model reads")
        parser.add_argument("--contexts", default="8k", help="tokens; 8k is 8192")
        parser.add_argument("--layers", type=int, default=4, help="measure every so many-th layer")
        parser.add_argument("--device", default="cpu", help="ops to choose with")
        parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
        args = parser.parse_args(argv)
        found: list[R] = []
        try:
            contexts, ops = _tokens("contexts", args.contexts), load_ops(args.device)
            for name in args.models:
                subject, rows = _subject(name, args.text), list[R]()
                for context in contexts:
                    with torch.no_grad():
                        dump = subject.dump(context)
                        rows += self.measure(dump, context, args.layers, ops)
                print(self.table(rows))
                print(f"wrote {self.save(subject.name, subject.about, rows, args.out)}")
                found += rows
        except (ValueError, OSError) as error:
            print(f"{prog}: {error}", file=sys.stderr)
            return None
        return found

    def save(self, model: str, about: str, rows: Sequence[R], folder: Path) -> Path:
        """Write one model's rows and return the path; what is there is never overwritten."""
        where = environment()
        stamp = datetime.fromisoformat(where["when"]).strftime("%Y%m%d-%H%M%S")
        path = folder / f"{self.name}-{model}-{stamp}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"schema": 1, "model": model, "about": about, "environment": where}
        lines = ",\n  ".join(json.dumps(_rounded(self.as_json(row, rows))) for row in rows)
        with path.open("x") as file:
            file.write(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n')
        return path


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}
