"""Write the tables of `docs/quality.md` and its picture from the newest run of each model.

    python -m bench.quality.report [--check]

What stands before the marker is written by hand; everything behind it comes from the files.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.quality import low_rank
from bench.quality.methods import clustered, quantised
from bench.quality.plot import error_plot
from bench.quality.results import FOLDER, Header, Row, newest
from bench.quality.tables import comparison, digits
from bench.tables import table, tokens
from sgl_sparsekv.selection.base import IndexOptions

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
PICTURE = PAGE.with_suffix(".svg")
MARKER = "<!-- Everything below is written by `python -m bench.quality.report`. -->"
JUDGED = 32 * 1024
"""Context of the acceptance rows and of the picture."""
SHOWN = 1024
"""Quest's budget in the tables."""
_OPTIONS = IndexOptions()
CLUSTERS = clustered(_OPTIONS.cluster_segment, _OPTIONS.tokens_per_centroid)
PRODUCTS = quantised(_OPTIONS.pq_segment, _OPTIONS.pq_subspaces, _OPTIONS.pq_bits)
DRAWN = tuple(
    dict.fromkeys(
        (
            *("quest", "mean_std", "shadowkv", CLUSTERS.name, f"{CLUSTERS.name} + estimate"),
            *(PRODUCTS.name, quantised(1024, 2, 6).name, quantised(1024, 4, 6).name),
            *("streaming", "oracle, units", "oracle, tokens"),
        )
    )
)
Run = tuple[str, Header, list[Row]]


def render(runs: Sequence[Run]) -> str:
    """What stands behind the marker."""
    parts = ["## At Quest's bytes", acceptance(runs)]
    for name, run, rows in runs:
        contexts = sorted({row.context for row in rows})
        found = run.environment
        right = ", ".join(f"{share:.0%} at {tokens(int(n))}" for n, share in run.accuracy.items())
        parts += [
            f"## {run.model}",
            f"{run.about[0].upper()}{run.about[1:]}; {run.queries} decode positions, every layer, "
            f"{run.heads} KV heads of {run.head_dim}. Next tokens that the dense model foretells: "
            f"{right}. `bench/results/{name}`, {found['when'][:10]}, {found['machine']}, torch "
            f"{found['torch']}, transformers {found['transformers']}, commit {found['commit']}.",
        ]
        for context in reversed(contexts):
            asked = sorted({row.quest_budget for row in rows})
            for budget in (SHOWN,) if SHOWN in asked else asked:
                parts.append(f"{tokens(context)} tokens, bytes as Quest with budget {budget:,}:")
                parts.append(comparison(rows, context, budget))
    return "\n\n".join([*parts, *_low_rank()]) + "\n"


def _low_rank() -> list[str]:
    files = sorted(FOLDER.glob(f"{low_rank.FILES}*.json"))
    if not files:
        return []
    found = json.loads(files[-1].read_text())
    about = found["environment"]
    where = (
        f"{tokens(found['context'])} tokens; lengths of errors over lengths of what is true; "
        f"`shadowkv` with a budget of {low_rank.BUDGET:,}. `bench/results/{files[-1].name}`, "
        f"{about['when'][:10]}, {about['machine']}, torch {about['torch']}, commit "
        f"{about['commit']}."
    )
    return ["## Keys of low rank", where, low_rank.tabulate(found)]


def acceptance(runs: Sequence[Run]) -> str:
    """Attention mass at Quest's bytes: the defaults, and the best setting of each method."""
    lines: list[list[object]] = []
    for _, run, rows in runs:
        judged = [row for row in rows if (row.context, row.equal) == (JUDGED, "bytes")]
        for budget in dict.fromkeys(row.quest_budget for row in judged):
            mass = {row.method: row.mass for row in judged if row.quest_budget == budget}
            quest = mass["quest"] or 0.0
            cells: list[object] = [run.model, f"{budget:,}", digits(quest)]
            for default, kind in ((CLUSTERS.name, "clusterkv"), (PRODUCTS.name, "pqcache")):
                tried = {k: v for k, v in mass.items() if v is not None and k.startswith(kind)}
                best = max(tried, key=lambda name: tried[name], default="none")
                own, top = mass.get(default), tried.get(best)
                cells += [digits(own), f"{best.partition(' ')[2]}: {digits(top)}"]
                cells.append("not measured" if own is None else "yes" if own >= quest else "no")
            lines.append(cells)
    columns = ["model", "Quest's budget", "Quest"]
    for name in (CLUSTERS.name, PRODUCTS.name):
        columns += [name, "best setting", "at least Quest"]
    head = f"Attention mass covered at {tokens(JUDGED)} when all read as many bytes as Quest."
    return f"{head}\n\n{table(columns, lines)}"


def picture(runs: Sequence[Run]) -> str:
    """Error against bytes of every model at the judged context."""
    panels = [
        (f"{run.model}, {tokens(JUDGED)} tokens", [r for r in rows if r.context == JUDGED])
        for _, run, rows in runs
        if any(row.context == JUDGED for row in rows)
    ]
    return error_plot(panels, DRAWN)


def main(argv: Sequence[str] | None = None) -> int:
    """Write page and picture; with `--check` only compare, and return 1 if out of date."""
    parser = argparse.ArgumentParser(prog="bench.quality.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    args = parser.parse_args(argv)
    runs = newest(FOLDER)
    written = PAGE.read_text().partition(MARKER)[0]
    made = {PAGE: f"{written}{MARKER}\n\n{render(runs)}", PICTURE: picture(runs)}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if args.check:
        for path in stale:
            print(f"bench.quality.report: {path} is out of date", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
