"""Hold what is certified to have been read against what was, and save the table.

    python -m bench.quality.certificate MODEL ... [--contexts 8k] [--layers 4] [--out FOLDER]

MODEL is a transformers folder (or `trained` or `text`), read on sources of Python's library. A row
is one query head of one decode position and layer. A file per model goes to
`bench/results/certificate-MODEL-<when>.json`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch

from bench.quality.__main__ import _subject, _tokens
from bench.quality.dump import Dump
from bench.quality.methods import Runner, Variant, clustered, quantised, residual
from bench.quality.results import FOLDER
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.selection.policy import IntArray
from sgl_sparsekv.tooling.environment import environment
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


def save(model: str, about: str, rows: Sequence[Row], folder: Path) -> Path:
    """Write one model's rows and return the path; what is there is never overwritten."""
    where = environment()
    stamp = datetime.fromisoformat(where["when"]).strftime("%Y%m%d-%H%M%S")
    path = folder / f"certificate-{model}-{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"schema": 1, "model": model, "about": about, "environment": where}
    with path.open("x") as file:
        json.dump({**head, "rows": [asdict(row) for row in rows]}, file, indent=1)
        file.write("\n")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named models; 1 if a bound was not met, 2 and one sentence for bad arguments."""
    parser = argparse.ArgumentParser(prog="bench.quality.certificate", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="trained, text, or a folder")
    parser.add_argument("--text", type=Path, help="what a folder's model reads")
    parser.add_argument("--contexts", default="8k", help="tokens; 8k is 8192")
    parser.add_argument("--layers", type=int, default=4, help="measure every so many-th layer")
    parser.add_argument("--device", default="cpu", help="ops to choose with")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    args = parser.parse_args(argv)
    broken = 0
    try:
        contexts, ops = _tokens("contexts", args.contexts), load_ops(args.device)
        for name in args.models:
            subject, rows = _subject(name, args.text), list[Row]()
            for context in contexts:
                with torch.no_grad():
                    rows += measure(subject.dump(context), context, args.layers, ops)
            print(table(rows))
            print(f"wrote {save(subject.name, subject.about, rows, args.out)}")
            broken += sum(row.violations for row in rows)
    except (ValueError, OSError) as error:
        print(f"bench.quality.certificate: {error}", file=sys.stderr)
        return 2
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
