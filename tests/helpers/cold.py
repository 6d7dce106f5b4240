"""What a request selects and reads when it is the only one there ever was."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

from .toy_model import GROUP, HEADS, SCALE, ToyModel


def always_kept(length: int, options: RequestOptions, unit: int) -> set[int]:
    """Units that hold a sink, a token of the window, or the newest token."""
    sinks = {p // unit for p in range(min(options.sink, length))}
    window = {p // unit for p in range(max(length - options.window, 0), length)}
    return sinks | window | {(length - 1) // unit}


def units_to_keep(length: int, options: RequestOptions, unit: int) -> int:
    """As many units, the tail among them, as hold no more tokens than the budget."""
    total, budget = -(-length // unit), options.budget_tokens(length)
    tail = length - (total - 1) * unit
    return max(n for n in range(1, total + 1) if n == 1 or (n - 1) * unit + tail <= budget)


def best_units(scores: torch.Tensor, kept: set[int], count: int) -> list[list[int]]:
    """Brute force: `kept`, then the best of `[H, U]`, equal scores to the lower unit."""
    chosen = []
    for head in scores.tolist():
        rest = sorted((-score, unit) for unit, score in enumerate(head) if unit not in kept)
        chosen.append(sorted({*kept, *(unit for _, unit in rest[: count - len(kept)])}))
    return chosen


@dataclass
class ColdRun:
    """One request on an empty machine: its tokens lie in order from slot 0 on.

    Attributes:
        model: supplies keys, values and queries.
        ops: the device.
        unit: tokens per unit.
        paths: path of each position, at least as many as any length asked for.
        options: of the request.
    """

    model: ToyModel
    ops: Ops
    unit: int
    paths: list[int]
    options: RequestOptions

    def scores(self, layer: int, length: int) -> torch.Tensor:
        """Scores `[H, U]` in the step that brings the context to `length` tokens."""
        method = load_method(self.options.method)
        total = -(-length // self.unit)
        kept = sorted(always_kept(length, self.options, self.unit))
        rest = [u for u in range(total) if u not in kept]
        begin, end = (rest[0], rest[-1] + 1) if rest else (0, 0)
        keys = self.model.keys(layer, self.paths[:length])
        keys = torch.cat((keys, keys.new_zeros(total * self.unit - length, *keys.shape[1:])))
        fields = None
        if method.summary is not None:
            planes = len(method.summary.planes)
            fields = keys.new_full((total, HEADS, planes, keys.shape[-1]), torch.nan)
            self.ops.summarise(method.summary, keys, fields, torch.arange(length // self.unit))
        candidates = Candidates(
            torch.arange(total, dtype=torch.int32)[None],
            torch.tensor([begin], dtype=torch.int32),
            torch.tensor([end], dtype=torch.int32),
        )
        q = self.query(layer, length)[None]
        inputs = ScoreInputs(q, keys, fields, candidates, SCALE, Reduction.MAX_SOFTMAX, self.unit)
        return method.score(self.ops, inputs)[0]

    def query(self, layer: int, length: int) -> torch.Tensor:
        """Q `[H, G, D]` of the newest token."""
        q = self.model.queries(layer, self.paths[length - 1 : length])
        return q.view(HEADS, GROUP, -1)

    def selection(self, layer: int, length: int, scored_at: int) -> list[list[int]]:
        """Logical units `[H][n]`, with scores of the step at `scored_at` tokens."""
        total = -(-length // self.unit)
        scores = torch.full((HEADS, total), -torch.inf)
        old = self.scores(layer, scored_at)
        scores[:, : old.shape[1]] = old
        kept = always_kept(length, self.options, self.unit)
        return best_units(scores, kept, units_to_keep(length, self.options, self.unit))

    def attention(self, layer: int, length: int, units: list[list[int]]) -> torch.Tensor:
        """Attention in float64 over the tokens of `units` `[H][n]`: `[H, G, D]`."""
        keys = self.model.keys(layer, self.paths[:length]).double()
        values = self.model.values(layer, self.paths[:length]).double()
        q = self.query(layer, length).double()
        out = torch.empty_like(q)
        for head, chosen in enumerate(units):
            tokens = torch.tensor(
                [p for u in chosen for p in range(u * self.unit, min(length, (u + 1) * self.unit))]
            )
            logits = q[head] @ keys[tokens, head].T * SCALE
            out[head] = logits.softmax(-1) @ values[tokens, head]
        return out
