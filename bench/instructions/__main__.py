"""Counts of the three kernels' machine code, before a change and now.

python -m bench.instructions              writes the table into docs/triton_kernels.md
python -m bench.instructions --save FILE  writes today's counts as JSON, to compare with later
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import triton

from bench.instructions.table import counted, table

PAGE = Path(__file__).parents[2] / "docs" / "triton_kernels.md"
BEGIN, END = "<!-- instructions: begin -->", "<!-- instructions: end -->"


def main() -> None:
    """Write the table, or save the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the counts as JSON")
    save = parser.parse_args().save
    if save:
        kernels = {name: asdict(counts) for name, counts in counted().items()}
        save.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}) + "\n")
        return
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
