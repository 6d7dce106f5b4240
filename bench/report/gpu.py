"""The GPU's part of `docs/results.md`: targets, their floors, and what was measured."""

from pathlib import Path

from bench.model import GPUS, LLAMA_3_1_8B, Workload
from bench.results_schema import Header, Row, load
from bench.tables import number, table, tokens
from bench.targets import BUDGET, JUDGED, NAMES, PAGE, TARGETS, TIMES_THE_FLOOR, Target

from .expected import expected_part

UNITS = (PAGE, 16)
"""Tokens per unit that is scored: a page, and what `geometry.UNIT_SIZE` is."""
INTRO = f"""\
Targets are for {LLAMA_3_1_8B.name} (bfloat16), page {PAGE}, budget {BUDGET:,}. Bounds in
microseconds are put for an {GPUS[JUDGED[0]].name}; another card's are as much longer as its memory
is slower. A floor is what must be read over the card's bandwidth, by `python -m bench.model`: all
metadata and the selected KV for us, all KV for dense. It says what no kernel can beat, not what one
attains. A target that bytes forbid is put in bytes: {TIMES_THE_FLOOR:g} times the floor's time.

A unit is what is scored and selected; smaller units have more metadata. Requests share nothing, but
in `shared_prefix`, whose floor reads metadata once for all. Each is judged by the newest run that
has its rows."""


def gpu_part(folder: Path) -> str:
    """Targets, then one section per run, newest first."""
    runs = [load(path) for path in sorted(folder.glob("*/*.json"), reverse=True)]
    parts = ["## GPU", INTRO]
    for gpu in JUDGED:
        card = GPUS[gpu]
        parts.append(f"### Targets on {card.name}")
        parts.append(f"Floors at {card.tb_per_s:g} TB/s: {card.source}.")
        parts.append(_targets(gpu, [rows for run, rows in runs if run.gpu == gpu]))
    parts += ["Rows:", _names(), expected_part(UNITS)]
    if not runs:
        parts.append("No run on a GPU is in `bench/results/`: nothing is measured yet.")
    return "\n\n".join([*parts, *(_run(*one) for one in runs)])


def _targets(gpu: str, measured: list[list[Row]]) -> str:
    """Every target at every listed shape.

    Args:
        gpu: key of `bench.model.GPUS`.
        measured: rows of each run, newest first.
    """
    head = ["row", "context", "batch", "target"]
    head += [f"floor, units of {unit}" for unit in UNITS]
    rows: list[list[object]] = []
    for key, target in TARGETS.items():
        for context, batch in target.shapes:
            shape = _newest(measured, key, (context, batch))
            works = [Workload(context, batch, unit, BUDGET) for unit in UNITS]
            floors = [_floor(gpu, target, work) for work in works]
            at = (target.name, tokens(context), batch, target.put(gpu))
            rows.append([*at, *floors, _judge(gpu, target, shape)])
        if target.everywhere:
            at = (target.name, "any", "any", target.put(gpu))
            judged = _judge(gpu, target, _newest(measured, key))
            rows.append([*at, *("" for _ in UNITS), judged])
    return table([*head, "measured"], rows)


def _newest(runs: list[list[Row]], key: str, shape: tuple[int, int] | None = None) -> list[Row]:
    """Rows that a target judges, at one (context, batch) or at any, of the newest run with some."""
    for rows in runs:
        found = [row for row in rows if key in row.targets]
        found = [row for row in found if shape in (None, (row.context, row.batch))]
        if found:
            return found
    return []


def _floor(gpu: str, target: Target, work: Workload) -> str:
    """Floor of a shape as the target is put, and what is asked for where that forbids it."""
    if not target.applies(target.name, work, PAGE):
        return "not judged"
    us, gain = target.floor(gpu, work)
    text = f"{number(us)} us" if gain is None else f"{number(gain)}x at {number(us)} us"
    bound = target.bound(gpu, work)
    return f"{text} forbids it: **{bound}**" if bound.forbidden else text


def _judge(gpu: str, target: Target, rows: list[Row]) -> str:
    """The worst of the rows: one that misses its bound, if there is one."""
    if not rows:
        return "not measured yet"
    judged = [(target.bound(gpu, row.work).met(row.measured_us, row.gain), row) for row in rows]
    if target.max_us is not None:
        met, worst = max(judged, key=lambda one: (not one[0], one[1].measured_us))
        text = f"{number(worst.measured_us)} us"
    else:
        met, worst = min(judged, key=lambda one: (one[0], one[1].gain or 0.0))
        text = f"{number(worst.gain)}x at {number(worst.measured_us)} us"
    return f"{text} (units of {worst.unit}): {'met' if met else 'missed'}"


def _names() -> str:
    return "\n".join(f"- `{key}`: {name.what}." for key, name in NAMES.items())


def _run(run: Header, rows: list[Row]) -> str:
    """One run: where, with what, and every row."""
    device = ", ".join(f"{key} {value}" for key, value in run.device.items())
    versions = ", ".join(f"{key} {value}" for key, value in run.versions.items())
    speed = "measured in this run" if run.bandwidth_measured else "not measured in this run"
    head = ["row", "method", "context", "batch", "page", "unit", "budget", "us", "median"]
    head += ["floor", "of floor", "peer", "peer us", "gain", "note"]
    body = [
        [
            *(row.name, row.method, tokens(row.context), row.batch, row.page, row.unit, row.budget),
            *(row.measured_us, row.median_us, row.floor_us, row.of_floor),
            *(row.peer, row.peer_us, row.gain, row.note),
        ]
        for row in rows
    ]
    where = (
        f"{device or run.machine.name}. Floors at {run.tb_per_s:g} TB/s, {speed}. "
        f"{versions}; commit {run.commit or 'not known'}."
    )
    return "\n\n".join([f"### {run.machine.name}, {run.when}", where, table(head, body)])
