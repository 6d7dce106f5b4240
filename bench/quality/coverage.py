"""Hold the coverage that is asked against the one that is got, and save the table.

    python -m bench.quality.coverage MODEL ... [--contexts 8k] [--layers 4] [--out FOLDER]

MODEL is a transformers folder (or `trained` or `text`), read on sources of Python's library.
Every method that tells shares of attention is asked for them and, for comparison, reads fixed
budgets, each KV head its own and out of a pool of a layer. Every `--layers`th layer is measured.
A file per model goes to `bench/results/coverage-MODEL-<when>.json`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bench.quality.cost import ELEMENT, bytes_read
from bench.quality.dump import Dump
from bench.quality.estimate import with_estimate
from bench.quality.measure import Truth, error_of, mass_of
from bench.quality.methods import Runner, Variant, clustered, quantised, residual
from bench.quality.study import Study
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection.policy import IntArray, RowPlan
from sgl_sparsekv.selection.sampling import sample_size
from sgl_sparsekv.types import Selection

ASKED = (0.8, 0.9, 0.95, 0.99)
BUDGETS = (128, 256, 512, 1024, 2048, 4096)
METHODS = (
    Variant("quest", "quest"),
    Variant("mean_std", "mean_std"),
    clustered(512, 16),
    quantised(512, 4, 4),
    residual(512, 4, estimate=False),
    residual(512, 4),
    Variant("oracle, tokens", "oracle", unit=1, free=True),
)


@dataclass(frozen=True)
class Row:
    """One way to read one context; means over layers, positions and KV heads.

    Attributes:
        context: tokens.
        method: name of the variant.
        asked: share of attention asked for; None where a budget was fixed.
        budget: tokens of a fixed budget, else None.
        split: whose the budget is: "even" or "heads".
        got: attention weight of what was read.
        got_p10: the worst tenth of rows and KV heads begins here.
        tokens: read.
        metadata_bytes: read to choose, of a step, layer and KV head; sampled keys are in it.
        kv_bytes: K and V attended.
        error: relative L2 error of the output.
        error_p90: the worst tenth of positions, query heads and layers begins here.
        at_floor: share of rows and KV heads whose sinks and window cover what was asked by
            themselves, so that nothing can bring them nearer; None where nothing was.
        got_above: as `got`, of the others.
        heads: as `got`, of each layer's KV heads, where a share was asked.
    """

    context: int
    method: str
    asked: float | None
    budget: int | None
    split: str
    got: float
    got_p10: float
    tokens: float
    metadata_bytes: float
    kv_bytes: float
    error: float
    error_p90: float
    at_floor: float | None = None
    got_above: float | None = None
    heads: tuple[tuple[float, ...], ...] = ()


@dataclass
class Sums:
    """What the layers of one way to read found."""

    mass: list[torch.Tensor]
    error: list[torch.Tensor]
    tokens: list[torch.Tensor]
    kept: list[torch.Tensor]


def measure(dump: Dump, context: int, every: int, ops: Ops) -> Iterator[Row]:
    """Rows of one context, method by method."""
    lengths: IntArray = dump.positions.numpy() + 1
    layers = dump.layers[every // 2 :: every]
    truths = [Truth.of(layer, lengths) for layer in layers]
    for variant in METHODS:
        runners = [Runner(variant, layer, lengths, ops) for layer in layers]
        for way in ways(context):
            yield read(variant, runners, truths, way, context)


def ways(context: int) -> list[tuple[float | None, int | None, str]]:
    """Coverage, budget and split of every way to read a context."""
    fixed = [budget for budget in BUDGETS if budget < context]
    splits = [(None, budget, split) for split in ("even", "heads") for budget in fixed]
    return [*((asked, None, "even") for asked in ASKED), *splits]


def read(
    variant: Variant,
    runners: Sequence[Runner],
    truths: Sequence[Truth],
    way: tuple[float | None, int | None, str],
    context: int,
) -> Row:
    """One method read one way in every layer."""
    asked, budget, split = way
    fixed = asked is None and split == "even"
    lengths, sums = runners[0].lengths, Sums([], [], [], [])
    # One less than everything: a ceiling that leaves nothing out would be dense.
    plan = variant.plan(lengths, budget or int(lengths.min()) - 1)
    for runner, truth in zip(runners, truths, strict=True):
        selection = (
            runner.select(plan) if fixed else runner.adaptive(plan, asked or 1.0, split == "heads")
        )
        out = attend(runner, selection, plan)
        sums.error.append(error_of(out, truth.out))
        sums.mass.append(mass_of(truth, selection, variant.unit_size).mean(-1))
        sums.kept.append(kept_mass(truth, plan))
        tail = torch.from_numpy(plan.tail)[:, None]
        sums.tokens.append(((selection.counts - 1) * variant.unit_size + tail).double())
    mass, error = torch.stack(sums.mass), torch.stack(sums.error).flatten()
    tokens = torch.stack(sums.tokens).mean().item()
    dim, floor = runners[0].keys.shape[-1], torch.stack(sums.kept) >= (asked or 2.0)
    unit = variant.unit_size
    sample = 0 if fixed else sample_size(unit) * unit * dim * ELEMENT
    return Row(
        *(context, variant.name, asked, budget, split),
        *(mass.mean().item(), mass.flatten().quantile(0.1).item(), tokens),
        *(bytes_read(variant, plan, lengths, dim).metadata + sample, tokens * 2 * dim * ELEMENT),
        *(error.mean().item(), error.quantile(0.9).item()),
        *((floor.float().mean().item(), mass[~floor].mean().item()) if asked else ()),
        heads=tuple(tuple(round(m, 4) for m in one) for one in mass.mean(1).tolist())
        if asked
        else (),
    )


def attend(runner: Runner, selection: Selection, plan: RowPlan) -> torch.Tensor:
    """Output `[rows, H, G, Dv]` in float32: what is measured is what was left out."""
    keys, values, q = (x.float() for x in (runner.keys, runner.values, runner.layer.q))
    tails = torch.from_numpy(plan.tail).int()
    shape = (runner.layer.scale, runner.variant.unit_size)
    table = (selection.physical, selection.counts, tails)
    state = runner.ops.attend(q, keys, values, *table, *shape)
    if runner.variant.estimate:
        state = with_estimate(runner, selection, plan, state)
    return state[0]


def kept_mass(truth: Truth, plan: RowPlan) -> torch.Tensor:
    """Attention weight of sinks, window and tail, as a mean over query heads: `[rows, H]`."""
    position = torch.arange(truth.weights.shape[-1])
    begin, end = (torch.from_numpy(x * plan.unit_size)[:, None] for x in (plan.begin, plan.end))
    ranked = (position >= begin) & (position < end)
    return truth.weights.masked_fill(ranked[:, None, None], 0).sum(-1).mean(-1)


def equal_error(rows: Sequence[Row], row: Row) -> float | None:
    """Bytes of `row` over those of a fixed budget with its error in the worst tenth.

    Between two budgets the logarithm of the bytes is a line over the error's; None outside them.
    """
    same = [r for r in rows if r.method == row.method and r.context == row.context]
    fixed = sorted((r.error_p90, r.metadata_bytes + r.kv_bytes) for r in same if is_fixed(r))
    errors, sizes = np.log(np.array(fixed)).T
    wanted = np.log(row.error_p90)
    if not errors[0] <= wanted <= errors[-1]:
        return None
    size = float(np.exp(np.interp(wanted, errors, sizes)))
    return (row.metadata_bytes + row.kv_bytes) / size


def is_fixed(row: Row) -> bool:
    """Whether every KV head read one budget."""
    return row.asked is None and row.split == "even"


def table(rows: Sequence[Row]) -> str:
    """Asked against got, and bytes at equal error in the worst tenth."""
    lines = [
        "| context | method | asked | got | worst tenth | at floor | got above it | tokens "
        "| p90 error | bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.asked is not None:
            ratio = equal_error(rows, row)
            lines.append(
                f"| {row.context} | {row.method} | {row.asked:.2f} | {row.got:.3f} "
                f"| {row.got_p10:.3f} | {row.at_floor:.2f} | {row.got_above:.3f} "
                f"| {row.tokens:.0f} | {row.error_p90:.3f} "
                f"| {'' if ratio is None else f'{ratio:.2f}'} |"
            )
    return "\n".join(lines)


def _as_json(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        **asdict(row),
        "bytes_at_equal_p90": None if is_fixed(row) else equal_error(rows, row),
    }


STUDY = Study("coverage", measure, table, _as_json)


if __name__ == "__main__":
    sys.exit(2 if STUDY.run(None) is None else 0)
