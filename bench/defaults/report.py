"""Write the tables of `docs/defaults.md` from the newest run of each model.

    python -m bench.defaults.report [--check]

What stands before the marker is written by hand; everything behind it comes from the files.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean

from bench.defaults.answers import LEVEL
from bench.defaults.errors import Finding
from bench.defaults.results import Run, newest
from bench.quality.tables import digits
from bench.tables import table, tokens

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
MARKER = "<!-- Everything below is written by `python -m bench.defaults.report`. -->"
AXES = {
    "shape": "Shapes of metadata",
    "kept": "Sinks and window",
    "dense": "Dense layers",
}
Named = tuple[str, Run]
Cell = tuple[str, int, int, int]
"""Model, context, and the level's budget and dense layers."""


def render(runs: Sequence[Named]) -> str:
    """What stands behind the marker."""
    parts = [_about(runs)]
    for axis, title in AXES.items():
        parts += [f"## {title}", _axis(runs, axis)]
    parts += ["## Methods", _methods(runs)]
    if any(run.answers for _, run in runs):
        parts += ["## Answers", *(_answers(run) for _, run in runs if run.answers)]
    return "\n\n".join(parts) + "\n"


def _about(runs: Iterable[Named]) -> str:
    lines = []
    for name, run in runs:
        about, contexts = run.environment, sorted({one.context for one in run.findings})
        lines.append(
            f"- {run.about[0].upper()}{run.about[1:]}, {', '.join(map(tokens, contexts))}: "
            f"`bench/results/{name}`, {about['when'][:10]}, {about['machine']}, commit "
            f"{about['commit']}."
        )
    return "\n".join(lines)


def _axis(runs: Sequence[Named], axis: str) -> str:
    """Each setting's error per level; below 1 is better.

    A shape's is over that of the shape that is served, sinks, windows and dense layers over the
    same shape with none of them changed.
    """
    served, plain = _served(runs), _plain(runs)
    found = _by_setting(runs, axis)
    levels = sorted({level(cell) for cells in found.values() for cell in cells})
    head = ["method", "setting", *(f"at Quest {n:,}{_dense(d)}" for n, d in levels), "cells"]
    rows = []
    for (method, setting), cells in found.items():
        ratios = defaultdict(list)
        for cell, one in cells.items():
            if axis == "shape":
                base = served.get((method, cell))
            else:
                base = plain.get((method, one.shape, cell))
            if one.error and base:
                ratios[level(cell)].append(one.error / base)
        means = [f"{geometric_mean(ratios[n]):.2f}" if ratios[n] else "" for n in levels]
        rows.append([method, setting, *means, sum(map(len, ratios.values()))])
    return table(head, rows)


def level(cell: Cell) -> tuple[int, int]:
    """Budget and dense layers that a cell's bytes are those of."""
    return cell[2], cell[3]


def _served(runs: Sequence[Named]) -> dict[tuple[str, Cell], float]:
    """Error of each method as it is served, without dense layers."""
    return {
        (one.method, cell): one.error
        for cell, one in _findings(runs)
        if one.served and one.error is not None
    }


def _plain(runs: Sequence[Named]) -> dict[tuple[str, str, Cell], float]:
    """Error of every shape, without dense layers."""
    return {
        (one.method, one.shape, cell): one.error
        for cell, one in _findings(runs)
        if one.axis == "shape" and one.error is not None
    }


def _by_setting(runs: Sequence[Named], axis: str) -> dict[tuple[str, str], dict[Cell, Finding]]:
    found: dict[tuple[str, str], dict[Cell, Finding]] = defaultdict(dict)
    for cell, one in _findings(runs):
        if one.axis == axis:
            found[one.method, one.setting][cell] = one
    return found


def _findings(runs: Sequence[Named]) -> Iterable[tuple[Cell, Finding]]:
    for _, run in runs:
        for one in run.findings:
            yield (run.model, one.context, one.quest_budget, one.quest_dense_layers), one


def _methods(runs: Sequence[Named]) -> str:
    """Errors of the served settings without dense layers, cell by cell."""
    served = _served(runs)
    cells = sorted({cell for _, cell in served})
    head = ["method", *(f"{m} {tokens(c)}, {n:,}{_dense(d)}" for m, c, n, d in cells)]
    methods = dict.fromkeys(method for method, _ in served)
    return table(
        head,
        [[method, *(digits(served.get((method, cell))) for cell in cells)] for method in methods],
    )


def _answers(run: Run) -> str:
    rows = [
        [
            *(tokens(one.context), one.method, one.dense_layers, f"{one.budget:,}"),
            *(f"{one.share:.1%}", f"{one.kl:.4f}", f"{one.top_1:.1%}", f"{one.needles:.0%}"),
        ]
        for one in run.answers
    ]
    head = ["context", "method", "dense layers", "budget", "KV read", "KL", "top-1", "needles"]
    return f"{run.model}, bytes of Quest {LEVEL[0]:,}{_dense(LEVEL[1])}:\n\n{table(head, rows)}"


def _dense(layers: int) -> str:
    return f" + {layers} dense" if layers else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; with `--check` only say whether it is up to date."""
    parser = argparse.ArgumentParser(prog="bench.defaults.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if it differs")
    args = parser.parse_args(argv)
    before = PAGE.read_text()
    head, marker, _ = before.partition(MARKER)
    if not marker:
        print(f"bench.defaults.report: {PAGE} must have the marker", file=sys.stderr)
        return 2
    after = f"{head}{MARKER}\n\n{render(newest())}"
    if args.check:
        return int(after != before)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
