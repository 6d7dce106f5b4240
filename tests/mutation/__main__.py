"""Sweep mutants over the modules that `[tool.mutmut]` of pyproject.toml names; write the docs.

    python -m tests.mutation [PATTERN ...] [--again] [--report]

A verdict stands in `mutants/` as soon as it is there: a sweep that was stopped goes on with what is
left, and one behind a change tries what the change touches. PATTERN chooses mutants by module, as
`sgl_sparsekv.geometry.*`. Exit status 1 if fewer than nine of ten are killed.
"""

import argparse
import sys
from collections.abc import Sequence

from .page import PAGE, share, write
from .survivors import swept_files
from .sweep import sweep

GOAL = 0.9


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, write the page's section, print what has no reason yet."""
    parser = argparse.ArgumentParser(prog="tests.mutation", description=__doc__)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="mutants; default: all")
    parser.add_argument("--again", action="store_true", help="anew those that live, too")
    parser.add_argument("--report", action="store_true", help="try none, only write the page")
    args = parser.parse_args(argv)
    if not args.report:
        code = sweep(args.patterns, args.again)
        if code:
            return code
    found = list(swept_files())
    if not found:
        print("no mutant has a verdict; the page stays as it is", file=sys.stderr)
        return 1
    write(PAGE, found)
    print(f"{share(found):.1%} killed; {PAGE} is written")
    return 0 if share(found) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
