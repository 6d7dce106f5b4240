"""How good a selection is: recall, attention mass covered, and error of the output."""

from dataclasses import dataclass

import numpy as np
import torch

from bench.quality.cost import BytesRead, bytes_read
from bench.quality.dump import LayerDump
from bench.quality.estimate import with_estimate
from bench.quality.methods import Runner, Variant
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection.policy import IntArray, RowPlan
from sgl_sparsekv.types import Selection


@dataclass(frozen=True)
class Truth:
    """Dense attention of every row.

    Attributes:
        weights: float32 `[rows, H, G, L]`, softmax over the keys that the row sees.
        out: float32 `[rows, H, G, Dv]`.
    """

    weights: torch.Tensor
    out: torch.Tensor

    @classmethod
    def of(cls, layer: LayerDump, lengths: IntArray) -> "Truth":
        """Softmax attention in float64."""
        keys, values = (x.double().movedim(0, 1)[:, None] for x in (layer.keys, layer.values))
        position = torch.arange(layer.keys.shape[0])
        weights, outs = [], []
        for q, length in zip(layer.q.double(), lengths.tolist(), strict=True):
            logits = (q[:, :, None] @ keys.mT)[:, :, 0] * layer.scale
            weight = logits.masked_fill(position >= length, -torch.inf).softmax(-1)
            weights.append(weight.float())
            outs.append((weight[:, :, None] @ values)[:, :, 0].float())
        return cls(torch.stack(weights), torch.stack(outs))

    def by_unit(self, unit_size: int) -> torch.Tensor:
        """Weights of whole units, the last one padded: `[rows, H, G, U]`."""
        spare = -self.weights.shape[-1] % unit_size
        return (
            torch.nn.functional.pad(self.weights, (0, spare)).unflatten(-1, (-1, unit_size)).sum(-1)
        )


@dataclass(frozen=True)
class Quality:
    """Means over rows and heads of one layer.

    Attributes:
        recall: share of the units that the oracle would rank into the budget, sinks and window
            left out; 1 where there is nothing to rank.
        mass: attention weight of what was read, per query head.
        error: length of (sparse - dense output) over length of the dense one, per query head.
        error_p90: the worst tenth of these begins here.
    """

    recall: float
    mass: float
    error: float
    error_p90: float


def mass_of(truth: Truth, selection: Selection, unit_size: int) -> torch.Tensor:
    """Attention weight that a selection covers: float32 `[rows, H, G]`."""
    weights = truth.by_unit(unit_size)
    units = selection.logical.long()
    index = units.clamp(min=0)[:, :, None].expand(-1, -1, weights.shape[2], -1)
    return weights.gather(-1, index).masked_fill((units < 0)[:, :, None], 0).sum(-1)


def recall_of(selection: Selection, best: Selection, plan: RowPlan) -> torch.Tensor:
    """Share of the ranked units of `best` that a selection has: float32 `[rows, H]`."""
    begin, end = (torch.from_numpy(x)[:, None, None] for x in (plan.begin, plan.end))

    def ranked(chosen: Selection) -> torch.Tensor:
        units = chosen.logical.long()
        inside = (units >= begin) & (units < end)
        marks = torch.zeros(*units.shape[:2], int(plan.num_units.max()) + 1, dtype=torch.bool)
        marks.scatter_(-1, units.masked_fill(~inside, marks.shape[-1] - 1), True)
        return marks[..., :-1]

    wanted = ranked(best)
    found = (ranked(selection) & wanted).sum(-1)
    count = wanted.sum(-1)
    return torch.where(count > 0, found / count.clamp(min=1), 1.0)


def error_of(out: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Relative L2 error of outputs `[rows, H, G, Dv]` -> `[rows, H, G]`."""
    return (out - dense).norm(dim=-1) / dense.norm(dim=-1).clamp(min=1e-12)


class Bench:
    """Variants over one layer; pools, indexes and truth are made once."""

    def __init__(self, layer: LayerDump, positions: torch.Tensor, ops: Ops) -> None:
        self.layer, self.ops = layer, ops
        self.lengths: IntArray = positions.numpy() + 1
        self.truth = Truth.of(layer, self.lengths)
        self._runners: dict[object, Runner] = {}
        self._best: dict[object, Selection] = {}

    def measure(self, variant: Variant, budget: int) -> tuple[Quality, BytesRead]:
        """One variant at one budget."""
        plan = variant.plan(self.lengths, budget)
        runner = self._runner(variant)
        selection = runner.select(plan)
        state = runner.attend(selection, plan)
        out = with_estimate(runner, selection, plan, state)[0] if variant.estimate else state[0]
        error = error_of(out, self.truth.out)
        best = self._oracle(variant, plan, budget)
        quality = Quality(
            recall_of(selection, best, plan).mean().item(),
            mass_of(self.truth, selection, variant.unit_size).mean().item(),
            error.mean().item(),
            np.quantile(error.numpy(), 0.9).item(),
        )
        return quality, bytes_read(variant, plan, self.lengths, self.layer.keys.shape[-1])

    def forget(self) -> None:
        """Drop pools and indexes; those of many variants are more than the dump itself."""
        self._runners.clear()
        self._best.clear()

    def _runner(self, variant: Variant) -> Runner:
        key = (variant.method, variant.index, variant.inherited, variant.unit, variant.eight_bit)
        if key not in self._runners:
            self._runners[key] = Runner(variant, self.layer, self.lengths, self.ops)
        return self._runners[key]

    def _oracle(self, variant: Variant, plan: RowPlan, budget: int) -> Selection:
        key = (variant.unit_size, budget, variant.sink, variant.window)
        if key not in self._best:
            kept = {"sink": variant.sink, "window": variant.window}
            oracle = Variant("", "oracle", unit=variant.unit_size, **kept)
            self._best[key] = self._runner(oracle).select(plan)
        return self._best[key]
