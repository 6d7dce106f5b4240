"""Measure selection quality on dumped keys and queries, and save it.

    python -m bench.quality [MODEL ...] [--contexts 4k,16k,32k] [--budgets 256,512,1024,2048]
                            [--resume]

MODEL is `trained` or `text` (both when none is named), or any transformers folder, which reads
`--text FILE` or else sources of Python's library. A file per model goes to `bench/results/`;
`python -m bench.quality.report` writes `docs/quality.md` from the newest of each. What is measured
is written at once to `quality-MODEL.part.jsonl` there; `--resume` goes on with it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.quality.methods import VARIANTS
from bench.quality.results import FOLDER, Row, save
from bench.quality.run import BUDGETS, measure
from bench.quality.subjects import SHIPPED, Subject, folder
from bench.quality.tables import comparison
from sgl_sparsekv.tooling.journal import GO_ON, Journal
from sgl_sparsekv.tooling.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named models; 2 and one sentence if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="bench.quality", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="trained, text, or a folder")
    parser.add_argument("--text", type=Path, help="what a folder's model reads")
    parser.add_argument("--contexts", default="4k,16k,32k", help="tokens; 4k is 4096")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="tokens of Quest")
    parser.add_argument("--methods", default="", help="only variants whose name has one of these")
    parser.add_argument("--device", default="reference", help="ops to choose and attend with")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument(GO_ON, action="store_true", help="go on with runs that were stopped")
    args = parser.parse_args(argv)
    journal = Journal()
    try:
        contexts, budgets = _tokens("contexts", args.contexts), _tokens("budgets", args.budgets)
        wanted = [part for part in args.methods.split(",") if part]
        variants = [v for v in VARIANTS if not wanted or any(part in v.name for part in wanted)]
        if not variants:
            raise ValueError(f"methods must name a variant, got {args.methods}")
        for name in args.models or SHIPPED:
            subject = _subject(name, args.text)
            journal = _journal(args, subject, budgets)
            run, rows = measure(subject, contexts, budgets, variants, args.device, journal)
            print(_tables(rows))
            print(f"wrote {save(run, rows, args.out)}")
            journal.finish()
    except KeyboardInterrupt:
        print(f"bench.quality: {journal.stopped()}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"bench.quality: {error}", file=sys.stderr)
        return 2
    return 0


def _subject(name: str, text: Path | None) -> Subject:
    return SHIPPED[name]() if name in SHIPPED else folder(Path(name), text)


def _journal(args: argparse.Namespace, subject: Subject, budgets: Sequence[int]) -> Journal:
    """Of one model's run; contexts and methods may differ from those of the run before."""
    settings = {"about": subject.about, "budgets": budgets, "device": args.device}
    path = args.out / f"quality-{subject.name}.part.jsonl"
    return Journal(path, settings, args.resume, Progress())


def _tokens(name: str, given: str) -> list[int]:
    try:
        found = [int(n[:-1]) * 1024 if n.endswith("k") else int(n) for n in given.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 256:
        raise ValueError(f"{name} must be numbers of tokens from 256 on, got {given!r}")
    return found


def _tables(rows: Sequence[Row]) -> str:
    shapes = dict.fromkeys((row.context, row.quest_budget) for row in rows)
    return "\n\n".join(
        f"{context} tokens, Quest's budget {budget}\n{comparison(rows, context, budget)}"
        for context, budget in shapes
    )


if __name__ == "__main__":
    sys.exit(main())
