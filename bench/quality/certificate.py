"""Hold what is certified to have been read against what was, and save the table.

    python -m bench.quality.certificate MODEL ... [--contexts 8k] [--layers 4] [--out FOLDER]

MODEL is a transformers folder (or `trained` or `text`), read on sources of Python's library. A row
is one query head of one decode position and layer. A file per model goes to
`bench/results/certificate-MODEL-<when>.json`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from bench.quality.dump import Dump
from bench.quality.methods import Runner, Variant, clustered, quantised, residual
from bench.quality.study import Study
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection.policy import IntArray
from sgl_sparsekv.types import Selection

BUDGETS = (512, 2048)
METHODS = (
    Variant("quest", "quest"),
    Variant("mean_std", "mean_std"),
    clustered(1024, 32),
    quantised(1024, 4, 6),
    residual(512, 4),
)


@dataclass(frozen=True)
class Row:
    """One method at one budget, over all rows of one context.

    Attributes:
        context: tokens.
        method: name of the variant.
        budget: tokens.
        rows: query heads, times decode positions and layers.
        violations: those that read less than was certified.
        mass: mean attention mass that was read.
        certified: mean of its lower bound.
        median_gap: median of the mass less its bound.
        least_gap: the least.
    """

    context: int
    method: str
    budget: int
    rows: int
    violations: int
    mass: float
    certified: float
    median_gap: float
    least_gap: float


def measure(dump: Dump, context: int, every: int, ops: Ops) -> Iterator[Row]:
    """Rows of one context, method by method."""
    lengths: IntArray = dump.positions.numpy() + 1
    for variant in METHODS:
        runners = [Runner(variant, each, lengths, ops) for each in dump.layers[every // 2 :: every]]
        for budget in BUDGETS:
            plan = variant.plan(lengths, budget)
            masses, floors = [], []
            for runner in runners:
                selection = runner.select(plan)
                floor = runner.certified(selection, plan)
                assert floor is not None, f"{variant.name} has no bound"
                masses.append(exact_mass(runner, selection))
                floors.append(floor)
            mass, floor = torch.stack(masses).flatten(), torch.stack(floors).flatten()
            gap = mass - floor
            yield Row(
                *(context, variant.name, budget, gap.numel(), int((gap < 0).sum())),
                *(mass.mean().item(), floor.mean().item(), gap.median().item(), gap.min().item()),
            )


def exact_mass(runner: Runner, selection: Selection) -> torch.Tensor:
    """Attention mass that a selection holds, token by token in float64: `[rows, H, G]`."""
    layer, size = runner.layer, runner.variant.unit_size
    logits = torch.einsum("rhgd,lhd->rhgl", layer.q.double(), layer.keys.double()) * layer.scale
    position = torch.arange(logits.shape[-1])
    unseen = position >= torch.from_numpy(runner.lengths)[:, None, None, None]
    weights = logits.masked_fill_(unseen, -torch.inf).softmax(-1)
    units = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % size))
    units = units.unflatten(-1, (-1, size)).sum(-1)
    chosen = selection.logical.long()[:, :, None]
    index = chosen.clamp(min=0).expand(-1, -1, units.shape[2], -1)
    return units.gather(-1, index).masked_fill(chosen < 0, 0).sum(-1)


def table(rows: Sequence[Row]) -> str:
    """What was read, what of it is certain, and how far apart they lie."""
    lines = [
        "| context | method | budget | rows | violations | read | certified | median gap |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.context} | {r.method} | {r.budget} | {r.rows} | {r.violations} | {r.mass:.3f} "
            f"| {r.certified:.3f} | {r.median_gap:.3f} |"
            for r in rows
        ),
    ]
    return "\n".join(lines)


STUDY = Study("certificate", measure, table, lambda row, _: asdict(row))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named models; 1 if a bound was not met, 2 and one sentence for bad arguments."""
    rows = STUDY.run(argv)
    return 2 if rows is None else int(any(row.violations for row in rows))


if __name__ == "__main__":
    sys.exit(main())
