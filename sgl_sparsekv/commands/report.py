"""`sparsekv report`: one HTML page from the results under a folder."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="looked through with its folders")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="a new file")


def run(args: argparse.Namespace) -> int:
    """Write it: 0 if there is at least one readable result."""
    from ..report import report

    found = report(args.folder, args.out)
    unread = f", {len(found.unread)} not shown" if found.unread else ""
    count = len(found.sections)
    print(f"{count} file{'s' * (count > 1)} of results{unread}: see {args.out}")
    return 0
