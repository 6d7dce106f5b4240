"""Hold the coverage that is asked against the one that is got, and save the table.

    python -m bench.quality.coverage MODEL ... [--contexts 8k] [--layers 4] [--out FOLDER]

MODEL is a transformers folder (or `trained` or `text`), read on sources of Python's library.
Every method that tells shares of attention is asked for them and, for comparison, reads fixed
budgets, each KV head its own and out of a pool of a layer. Every `--layers`th layer is measured.
A file per model goes to `bench/results/coverage-MODEL-<when>.json`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from bench.quality.__main__ import _subject, _tokens
from bench.quality.cost import bytes_read
from bench.quality.dump import Dump
from bench.quality.measure import Truth, error_of, mass_of
from bench.quality.methods import Runner, Variant, clustered, quantised, residual
from bench.quality.results import FOLDER
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.selection.policy import IntArray, RowPlan
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.types import Selection

ASKED = (0.8, 0.9, 0.95, 0.99)
BUDGETS = (128, 256, 512, 1024, 2048, 4096)
METHODS = (
    Variant("quest", "quest"),
    Variant("mean_std", "mean_std"),
    clustered(1024, 32),
    quantised(1024, 4, 6),
    residual(512, 4, estimate=False),
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
        metadata_bytes: read to choose, of a step, layer and KV head.
        kv_bytes: K and V attended.
        error: relative L2 error of the output.
        error_p90: the worst tenth of positions, query heads and layers begins here.
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


@dataclass
class Sums:
    """What the layers of one way to read found."""

    mass: list[torch.Tensor]
    error: list[torch.Tensor]
    tokens: list[torch.Tensor]


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
    lengths, sums = runners[0].lengths, Sums([], [], [])
    # One less than everything: a ceiling that leaves nothing out would be dense.
    plan = variant.plan(lengths, budget or int(lengths.min()) - 1)
    for runner, truth in zip(runners, truths, strict=True):
        fixed = asked is None and split == "even"
        selection = (
            runner.select(plan) if fixed else runner.adaptive(plan, asked or 1.0, split == "heads")
        )
        out = attend(runner, selection, plan)
        sums.error.append(error_of(out, truth.out))
        sums.mass.append(mass_of(truth, selection, variant.unit_size).mean(-1))
        tail = torch.from_numpy(plan.tail)[:, None]
        sums.tokens.append(((selection.counts - 1) * variant.unit_size + tail).double())
    mass, error = torch.stack(sums.mass), torch.stack(sums.error).flatten()
    tokens = torch.stack(sums.tokens).mean().item()
    dim = runners[0].keys.shape[-1]
    return Row(
        *(context, variant.name, asked, budget, split),
        *(mass.mean().item(), mass.flatten().quantile(0.1).item(), tokens),
        *(bytes_read(variant, plan, lengths, dim).metadata, tokens * 2 * dim * 2),
        *(error.mean().item(), error.quantile(0.9).item()),
    )


def attend(runner: Runner, selection: Selection, plan: RowPlan) -> torch.Tensor:
    """Output `[rows, H, G, Dv]` in float32: what is measured is what was left out."""
    keys, values, q = (x.float() for x in (runner.keys, runner.values, runner.layer.q))
    tails = torch.from_numpy(plan.tail).int()
    shape = (runner.layer.scale, runner.variant.unit_size)
    table = (selection.physical, selection.counts, tails)
    return runner.ops.attend(q, keys, values, *table, *shape)[0]


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
    lines = ["| context | method | asked | got | worst tenth | tokens | p90 error | bytes |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row.asked is not None:
            ratio = equal_error(rows, row)
            lines.append(
                f"| {row.context} | {row.method} | {row.asked:.2f} | {row.got:.3f} "
                f"| {row.got_p10:.3f} | {row.tokens:.0f} | {row.error_p90:.3f} "
                f"| {'' if ratio is None else f'{ratio:.2f}'} |"
            )
    return "\n".join(lines)


def save(model: str, about: str, rows: Sequence[Row], folder: Path) -> Path:
    """Write one model's rows and return the path; what is there is never overwritten."""
    where = environment()
    stamp = datetime.fromisoformat(where["when"]).strftime("%Y%m%d-%H%M%S")
    path = folder / f"coverage-{model}-{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [
        {
            **{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in asdict(row).items()},
            "bytes_at_equal_p90": None if is_fixed(row) else equal_error(rows, row),
        }
        for row in rows
    ]
    head = {"schema": 1, "model": model, "about": about, "environment": where}
    lines = ",\n  ".join(json.dumps(row) for row in found)
    with path.open("x") as file:
        file.write(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n')
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named models; 2 and one sentence if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="bench.quality.coverage", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="trained, text, or a folder")
    parser.add_argument("--text", type=Path, help="what a folder's model reads")
    parser.add_argument("--contexts", default="8k", help="tokens; 8k is 8192")
    parser.add_argument("--layers", type=int, default=4, help="measure every so many-th layer")
    parser.add_argument("--device", default="cpu", help="ops to choose with")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result files")
    args = parser.parse_args(argv)
    try:
        contexts, ops = _tokens("contexts", args.contexts), load_ops(args.device)
        for name in args.models:
            subject, rows = _subject(name, args.text), list[Row]()
            for context in contexts:
                with torch.no_grad():
                    rows += measure(subject.dump(context), context, args.layers, ops)
            print(table(rows))
            print(f"wrote {save(subject.name, subject.about, rows, args.out)}")
    except (ValueError, OSError) as error:
        print(f"bench.quality.coverage: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
