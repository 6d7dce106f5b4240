"""Fit how shares of attention follow from a method's scores, on texts that no table is made from.

    python -m bench.quality.shares MODEL,TEXT,TOKENS ... [--methods quest,mean_std]

Every third layer is looked at, none of those that `bench.quality.coverage --layers 3` measures. For
each method those pairs of `flat` and `offset` are printed that bring the worst of the models, texts
and goals nearest to what is asked; `share_model` in a method's own file has the best.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from bench.quality.coverage import METHODS
from bench.quality.dump import Dump
from bench.quality.methods import Runner, Variant
from bench.quality.subjects import folder
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection.base import ShareModel
from sgl_sparsekv.selection.policy import IntArray
from sgl_sparsekv.types import Reduction

ASKED = (0.9, 0.95, 0.99)
LENIENCE = (1.0, 1.0, 1 / 3)
"""A goal of 0.99 has no room for 0.02."""
FLATS = tuple(round(0.6 + 0.05 * i, 2) for i in range(9))
OFFSETS = tuple(round(-1 + 0.2 * i, 1) for i in range(13))
EVERY, FIRST, SHOWN = 3, 2, 3


@dataclass(frozen=True)
class Scene:
    """One layer under one method.

    Attributes:
        scores: float32 `[rows, H, G, U]`, what the method makes of q·k; -inf for no candidates.
        true: the same, log-sum-exp of q·k over the unit.
        known: float32 `[rows, H, G]`, log-sum-exp of q·k over what is read in any case.
    """

    scores: torch.Tensor
    true: torch.Tensor
    known: torch.Tensor

    @classmethod
    def of(cls, runner: Runner) -> "Scene":
        """What the method says in one layer, query head by query head, and what is true."""
        plan = runner.variant.plan(runner.lengths, int(runner.lengths.min()) - 1)
        inputs = replace(runner.inputs(plan), reduction=Reduction.MAX)
        shares = getattr(runner.method, "shares", None)
        told, true = [], []
        for q in inputs.q.split(1, dim=2):
            one = replace(inputs, q=q.contiguous())
            spans, keys, scale = one.candidates, one.keys, one.scale
            if shares is None:
                told.append(runner.method.score(runner.ops, one))
            else:
                fields = one.fields[shares.name]
                told.append(runner.ops.score(shares, one.q, fields, spans, scale, Reduction.MAX))
            size = (one.reduction, one.unit_size)
            true.append(runner.ops.score_exact(one.q, keys, spans, scale, *size))
        return cls(torch.stack(told, 2), torch.stack(true, 2), runner.known(plan))

    def got(self, model: ShareModel, asked: Iterable[float]) -> list[torch.Tensor]:
        """Share of attention `[rows, H]` that is read for each goal, the budget out of the way."""
        told, whole = (
            _joined(self.scores, self.known - model.offset), _joined(self.true, self.known)
        )  # fmt: skip
        shares = (self.scores - told).exp().mean(2)
        best, order = shares.sort(dim=-1, descending=True, stable=True)
        mass = best.sum(-1, keepdim=True)
        flat = best**model.flat
        flat *= mass / flat.sum(-1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
        before = flat.cumsum(-1) - flat
        always = (self.known - whole[..., 0]).exp().mean(2)
        found = (self.true - whole).exp().mean(2).gather(-1, order).cumsum(-1)
        found = torch.cat((torch.zeros_like(found[..., :1]), found), -1)
        return [
            always + found.gather(-1, (before < goal - (1 - mass)).sum(-1, keepdim=True))[..., 0]
            for goal in asked
        ]


def _joined(logits: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(logits.logsumexp(-1), known)[..., None]


def means(scenes: Sequence[Scene], model: ShareModel) -> list[float]:
    """What is got for each goal, a mean over layers, rows and KV heads."""
    found = zip(*(scene.got(model, ASKED) for scene in scenes), strict=True)
    return [torch.stack(layers).mean().item() for layers in found]


def miss(got: Sequence[float]) -> float:
    """How far the worst goal lies off."""
    pairs = zip(got, ASKED, LENIENCE, strict=True)
    return max(abs(mean - goal) / lenience for mean, goal, lenience in pairs)


def scenes_of(variant: Variant, dump: Dump) -> list[Scene]:
    """The layers that are looked at."""
    lengths: IntArray = dump.positions.numpy() + 1
    layers, ops = dump.layers[FIRST::EVERY], load_ops("cpu")
    return [Scene.of(Runner(variant, layer, lengths, ops)) for layer in layers]


def fitted(scenes: Sequence[Sequence[Scene]]) -> list[tuple[float, ShareModel]]:
    """Models from the best on, with what their worst dump misses."""
    models = [ShareModel(flat, offset) for flat, offset in product(FLATS, OFFSETS)]
    worst = [max(miss(means(dump, model)) for dump in scenes) for model in models]
    return sorted(zip(worst, models, strict=True), key=lambda pair: pair[0])


def dumped(spec: str) -> Dump:
    """Keys and queries of MODEL,TEXT,TOKENS.

    Raises:
        ValueError: it does not say that, or the model or text will not do.
    """
    match spec.split(","):
        case [model, text, tokens] if tokens.isdigit():
            return folder(Path(model), Path(text)).dump(int(tokens))
        case _:
            raise ValueError(f"a dump must be MODEL,TEXT,TOKENS, got {spec}")


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the named methods; 2 and one sentence if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="bench.quality.shares", description=__doc__)
    parser.add_argument("dumps", nargs="+", metavar="MODEL,TEXT,TOKENS")
    parser.add_argument("--methods", default="", help="only variants whose name has one of these")
    args = parser.parse_args(argv)
    wanted = [part for part in args.methods.split(",") if part]
    try:
        with torch.no_grad():
            dumps = [dumped(spec) for spec in args.dumps]
            for variant in METHODS:
                if wanted and not any(part in variant.name for part in wanted):
                    continue
                scenes = [scenes_of(variant, dump) for dump in dumps]
                for worst, model in fitted(scenes)[:SHOWN]:
                    told = " ".join(
                        "/".join(f"{got:.3f}" for got in means(dump, model)) for dump in scenes
                    )
                    print(f"{variant.name}: {model}, off by {worst:.4f}: {told}")
    except (ValueError, OSError) as error:
        print(f"bench.quality.shares: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
