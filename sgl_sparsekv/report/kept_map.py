"""Which tokens the KV heads of every layer keep, as pictures: of an answer, or of a traced step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .bitmap import COLOUR
from .markup import details, number, percent, pictured, side_by_side, table
from .requests import Units
from .selection_map import bare_map, context_map
from .squares import Value, Write, head_squares

ByLayer = Mapping[int, Sequence[float]]
"""A number per KV head, by number of the layer."""
MOST_HEADS = 48
"""Layers whose heads are drawn one by one, per request."""


@dataclass(frozen=True)
class Kept:
    """What one request keeps.

    Attributes:
        method: how it was chosen.
        budget: as asked for; empty where it is not known.
        length: tokens that it was chosen from.
        since: tokens that came since and are read as well; 0 where they are among the kept.
        layers: by number, the positions that each KV head keeps.
        mass: by number, the share of attention that these held; empty where it was not measured.
        decoded: the same in decode steps, a mean.
    """

    method: str
    budget: str
    length: int
    since: int
    layers: dict[int, list[Units]]
    mass: dict[int, list[float]] = field(default_factory=dict)
    decoded: float | None = None

    @property
    def counts(self) -> dict[int, list[int]]:
        """Tokens that each KV head keeps, by layer."""
        return {layer: [len(head) for head in self.layers[layer]] for layer in sorted(self.layers)}

    @property
    def tokens(self) -> float:
        """Tokens that a KV head keeps, a mean over heads and layers."""
        return mean_of(self.counts)

    @property
    def reach(self) -> tuple[int, int]:
        """Tokens that the head with the fewest and the one with the most keep."""
        counts = [count for heads in self.counts.values() for count in heads]
        return min(counts), max(counts)

    @property
    def retained(self) -> float | None:
        """Mean share of attention over heads and layers."""
        return mean_of(self.mass) if self.mass else None


def mean_of(by_layer: ByLayer) -> float:
    """Of all heads of all layers."""
    return float(np.mean([value for heads in by_layer.values() for value in heads]))


def pictures(kept: Kept, name: str) -> str:
    """All layers in one map, each head's budget and what it retains; on demand heads and numbers.

    Args:
        kept: what is drawn, of one layer at least.
        name: of the request, for who cannot see the pictures.
    """
    layers = sorted(kept.layers)
    note = f"layers {layers[0]} to {layers[-1]}, downwards; strong: every KV head keeps it"
    ends = (str(layers[0]), str(layers[-1]))
    rows = [kept.layers[layer] for layer in layers]
    drawn = context_map(rows, kept.length, kept.length, ends, f"tokens that {name} keeps")
    heads = _budgets(kept) + (_retained(kept) if kept.mass else "")
    maps = [pictured("Kept tokens", note, drawn), f"<div>{heads}</div>"]
    return side_by_side(maps) + _heads(kept, name) + _numbers(kept)


def _budgets(kept: Kept) -> str:
    least, most = kept.reach
    note = f"{least:,} to {most:,} tokens" if least < most else f"{most:,} tokens each"
    return _squares(
        "Budget of each KV head",
        f"layers across, heads down; {note}",
        kept.counts,
        lambda count: count / most if most else 0.0,
        "{:,} tokens".format,
    )


def _retained(kept: Kept) -> str:
    shares = [share for heads in kept.mass.values() for share in heads]
    note = f"strong: all of it; {percent(min(shares))} to {percent(max(shares))}"
    mass = dict(sorted(kept.mass.items()))
    return _squares("Attention retained by each", note, mass, lambda share: share, percent)


def _squares(title: str, note: str, by_layer: ByLayer, dark: Value, say: Write) -> str:
    names = [f"layer {layer}" for layer in by_layer]
    drawn = head_squares(list(by_layer.values()), names, f"rgb{COLOUR}", dark, say)
    return pictured(title, note, drawn)


def _heads(kept: Kept, name: str) -> str:
    """A map per layer, a row per KV head."""
    layers = sorted(kept.layers)
    maps = []
    for layer in layers[:MOST_HEADS]:
        rows = [[head] for head in kept.layers[layer]]
        drawn = bare_map(rows, kept.length, f"{name}, layer {layer}")
        maps.append(pictured(f"layer {layer}", "", drawn))
    left = len(layers) - len(maps)
    title = f"Each KV head, {len(maps)} layers" + (f"; {left} more are left out" if left else "")
    return details(title, side_by_side(maps, "heads"))


def _numbers(kept: Kept) -> str:
    head = ["layer", "kept, least head", "mean", "most"]
    rows = [[str(layer), *_ends(heads)] for layer, heads in kept.counts.items()]
    if kept.mass:
        head += ["attention retained", "least head"]
        for row, layer in zip(rows, kept.counts, strict=True):
            heads = kept.mass[layer]
            row += [percent(sum(heads) / len(heads)), percent(min(heads))]
    return details(f"All {len(rows)} layers in numbers", table(head, rows))


def _ends(heads: Sequence[int]) -> tuple[str, str, str]:
    return f"{min(heads):,}", number(sum(heads) / len(heads)), f"{max(heads):,}"
