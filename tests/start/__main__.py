"""Judge SGLang's flags and model families; write `docs/compatibility.md`.

    python -m tests.start [WORD ...] [--only flags | families] [--report]

Lines that contain a WORD are judged anew; without one, those that have no verdict yet: a verdict is
in `docs/results/soak/start.json` as soon as it is there, so a sweep that was stopped goes on. Exit
status 1 if a line is neither served nor refused.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.launcher import Launcher

from .figures import FAMILIES, FLAGS, Figures, judge
from .page import PAGE
from .sweep import FAULT


def main(argv: Sequence[str] | None = None) -> int:
    """Judge what was asked for, print each verdict, write the page."""
    parser = argparse.ArgumentParser(prog="tests.start", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="of lines that are judged anew")
    parser.add_argument("--only", choices=(FLAGS, FAMILIES), help="one half of the page")
    parser.add_argument("--report", action="store_true", help="judge none, only write the page")
    args = parser.parse_args(argv)
    figures = Figures()

    def chosen(section: str, name: str) -> bool:
        if args.only not in (None, section):
            return False
        if args.words:
            return any(word in name for word in args.words)
        return name not in figures.found[section]

    from sglang.srt.plugins import load_plugins

    load_plugins()
    if not args.report:
        with tempfile.TemporaryDirectory() as folder, Launcher(Path(folder)) as launcher:
            for verdict in judge(launcher, figures, chosen):
                print(f"{verdict.how:20} {verdict.name}: {verdict.words}", flush=True)
    faults = [verdict for verdict in figures.write_page() if verdict.how == FAULT]
    print(f"{PAGE} is written; {len(faults)} are neither served nor refused")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
