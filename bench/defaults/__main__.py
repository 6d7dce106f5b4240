"""Measure every option of every method beside its neighbours, and save it.

    python -m bench.defaults MODEL [MODEL ...] [--contexts 8k,16k] [--no-answers] [--resume]

MODEL is a transformers folder; it reads sources of Python's library. All candidates read as many
bytes as Quest with a budget of 512, or of 2,048, in every layer, or as Quest with 2,048 and two
dense layers; dense layers are counted. Errors of the attention output come from dumps of the
model; then a server answers prompts and needles, methods beside dense layers. A file per model goes
to `bench/results/`; `python -m bench.defaults.report` writes `docs/defaults.md` from the newest.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.defaults.answers import answers
from bench.defaults.errors import findings
from bench.defaults.results import Run, save
from bench.quality.results import FOLDER
from bench.quality.subjects import folder
from sgl_sparsekv.evaluation.settings import parse_lengths
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.journal import GO_ON, Journal
from sgl_sparsekv.tooling.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named models; 2 and one sentence if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="bench.defaults", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a model's folder")
    parser.add_argument("--contexts", default="8k,16k", help="tokens; 8k is 8192")
    parser.add_argument("--answer-contexts", default="8k", help="tokens of prompts and needles")
    parser.add_argument("--no-answers", action="store_true", help="errors alone; no server")
    parser.add_argument("--device", default="cpu", help="ops to choose and attend with")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    parser.add_argument(GO_ON, action="store_true", help="go on with runs that were stopped")
    args = parser.parse_args(argv)
    journal = Journal()
    try:
        contexts, asked = parse_lengths(args.contexts), parse_lengths(args.answer_contexts)
        for path in args.models:
            subject = folder(path, None)
            part = args.out / f"defaults-{subject.name}.part.jsonl"
            settings = {"about": subject.about, "device": args.device}
            journal = Journal(part, settings, args.resume, Progress())
            found = findings(subject, contexts, args.device, journal)
            said = [] if args.no_answers else answers(path, asked, journal)
            run = Run(subject.name, subject.about, environment(), found, said)
            print(f"wrote {save(run, args.out)}")
            journal.finish()
    except KeyboardInterrupt:
        print(f"bench.defaults: {journal.stopped()}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"bench.defaults: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
