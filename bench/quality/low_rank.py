"""Keys of low rank before the rotation (ShadowKV, arXiv 2410.21465): a study, and nothing served.

    python -m bench.quality.low_rank [MODEL ...] [--context 16384]

The paper keeps 160 of 1,024 key channels of a layer (all KV heads side by side), in a basis fitted
to the sequence, and rotates what it puts together again. A shared prefix asks for more: a basis
that was fitted to the prefix must carry what comes behind it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.quality.dump import Dump, LayerDump, turned
from bench.quality.measure import Truth, error_of
from bench.quality.methods import VARIANTS, Runner
from bench.quality.results import FOLDER
from bench.quality.subjects import SHIPPED
from bench.tables import table
from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.tooling.environment import environment

SHARE = 160 / 1024
"""Channels that are kept: the paper's setting."""
BUDGET = 1024
"""Tokens that ShadowKV reads."""
FILES = "low-rank-"
"""How result files begin."""
SHADOWKV = next(variant for variant in VARIANTS if variant.name == "shadowkv")


@dataclass(frozen=True)
class LowRank:
    """One basis; means over layers, positions and heads.

    Attributes:
        basis: "own": fitted to the whole sequence; "prefix": to its first half.
        kept: channels kept over all channels.
        first: length of (put together - true key) over length of the true one, first half.
        second: the same of the second half.
        dense: relative L2 error of attention over all of these keys.
        chosen: the same where ShadowKV chose by the true keys, against dense attention.
        exact: as `chosen` with the true keys.
    """

    basis: str
    kept: float
    first: float
    second: float
    dense: float
    chosen: float
    exact: float


def fitted(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """The `rank` best directions of rows `[n, C]`: float64 `[C, rank]`, by singular values."""
    wide = rows.double()
    return torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -rank:]


def study(dump: Dump, share: float = SHARE) -> list[LowRank]:
    """Both bases at one share of the channels."""
    found = []
    for basis in ("own", "prefix"):
        layers = [_layer(dump, layer, basis, share) for layer in dump.layers]
        means = [fmean(column) for column in zip(*layers, strict=True)]
        found.append(LowRank(basis, share, *means))
    return found


def _layer(dump: Dump, layer: LayerDump, basis: str, share: float) -> tuple[float, ...]:
    lengths = dump.positions.numpy() + 1
    length, heads, dim = layer.keys.shape
    plain = layer.plain_keys.flatten(1).double()
    half = length // 2
    kept = fitted(plain if basis == "own" else plain[:half], max(1, round(share * heads * dim)))
    again = (plain @ kept @ kept.T).float().unflatten(1, (heads, dim))
    keys = turned(again, dump.cos, dump.sin).bfloat16()
    miss = (keys.float() - layer.keys.float()).norm(dim=-1) / layer.keys.float().norm(dim=-1)
    truth = Truth.of(layer, lengths)
    low = Truth.of(replace(layer, keys=keys), lengths)
    runner = Runner(SHADOWKV, layer, lengths, load_ops("reference"))
    plan = SHADOWKV.plan(lengths, BUDGET)
    selection = runner.select(plan)
    exact, _ = runner.attend(selection, plan)
    runner.keys = torch.nn.functional.pad(keys, (0, 0, 0, 0, 0, -length % UNIT_SIZE))
    chosen, _ = runner.attend(selection, plan)
    errors = (error_of(out, truth.out).mean().item() for out in (low.out, chosen, exact))
    return miss[:half].mean().item(), miss[half:].mean().item(), *errors


def tabulate(found: dict[str, Any]) -> str:
    """The content of a result file as a table."""
    rows = []
    for row in found["rows"]:
        figures = ("first", "second", "dense", "chosen", "exact")
        cells = [f"{row[key]:.3f}" for key in figures]
        rows.append([row["model"], row["basis"], f"{row['kept']:.1%}", *cells])
    columns = ["model", "basis", "channels kept", "keys, 1st half", "keys, 2nd half"]
    return table([*columns, "all read", "shadowkv", "shadowkv, true keys"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Study the named models and save it; 2 and one sentence if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="bench.quality.low_rank", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=" or ".join(SHIPPED))
    parser.add_argument("--context", type=int, default=16384, help="tokens (16384)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the result file")
    args = parser.parse_args(argv)
    names, rows = args.models or list(SHIPPED), []
    for name in names:
        if name not in SHIPPED:
            wrong = f"MODEL must be {' or '.join(SHIPPED)}, got {name}"
            print(f"bench.quality.low_rank: {wrong}", file=sys.stderr)
            return 2
    about = environment()
    for name in names:
        dump = SHIPPED[name]().dump(args.context)
        for share in (SHARE, 2 * SHARE, 4 * SHARE):
            rows += [{"model": name, **asdict(one)} for one in study(dump, share)]
    found = {"schema": 1, "context": args.context, "environment": about, "rows": rows}
    print(tabulate(found))
    stamp = datetime.fromisoformat(about["when"]).strftime("%Y%m%d-%H%M%S")
    with (args.out / f"{FILES}{stamp}.json").open("x") as file:
        file.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
