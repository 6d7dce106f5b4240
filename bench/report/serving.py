"""The part of `docs/results.md` on whole servers under load: runs of `bench.serve`."""

from pathlib import Path

from bench.serve.results import Result, load
from bench.serve.table import HEAD, TITLES, cells
from bench.tables import table

INTRO = """\
SGLang's own benchmark tools, each dense peer and our server with the same flags, in the same run;
`full` and the peers read everything. What each column is and how to run it:
[serving benchmarks](serving_benchmarks.md)."""


def serving_part(folder: Path) -> list[str]:
    """Every run, newest first; nothing if there is none."""
    runs = [(path, load(path)) for path in folder.glob("serving-*.json")]
    if not runs:
        return []
    runs.sort(key=lambda one: (one[1].header.environment["when"], one[0].name), reverse=True)
    return ["\n\n".join(["## Serving", INTRO, *(_run(*one) for one in runs)])]


def _run(path: Path, result: Result) -> str:
    head, where = result.header, result.header.environment
    load_average = " before and ".join(f"{one:.1f}" for one in head.load_average)
    parts = [
        f"### {where['when'][:10]}, `bench/results/{path.name}`",
        f"{'; '.join(head.gpu) or where['machine']}, {where['threads'] or 'default'} threads, load "
        f"{load_average} after; SGLang {where['sglang']}, torch {where['torch']}, commit "
        f"{where['commit']}. {head.model}. Servers differ in: {'; '.join(head.differences)}.",
    ]
    if path.with_suffix(".svg").exists():
        parts.append(f"![The same as a picture](../bench/results/{path.stem}.svg)")
    for workload, title in TITLES.items():
        rows = [row for row in result.rows if row.workload == workload]
        if rows:
            parts += [
                f"{title[0].upper()}{title[1:]}:",
                table(HEAD, [cells(r, rows) for r in rows]),
            ]
    if result.failures:
        parts.append("\n".join(f"- Failed: {one.point}: {one.reason}" for one in result.failures))
    return "\n\n".join(parts)
