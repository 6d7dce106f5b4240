"""What is tried: each option of each method beside its neighbours, the others as served."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.quality.cost import bytes_read, equal_budget
from bench.quality.methods import SINK, WINDOW, Variant, clustered, quantised, residual
from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.selection.base import IndexOptions
from sgl_sparsekv.selection.policy import IntArray

SHAPES = {
    "quest": tuple(Variant("quest", "quest", unit=unit) for unit in (16, 32, 64)),
    "mean_std": tuple(Variant("mean_std", "mean_std", unit=unit) for unit in (16, 32, 64)),
    "quest_two_level": (Variant("quest_two_level", "quest_two_level", rescored=True),),
    "shadowkv": (Variant("shadowkv", "shadowkv", rescored=True),),
    "clusterkv": tuple(clustered(s, t) for s in (512, 1024, 4096) for t in (16, 32)),
    "pqcache": tuple(
        quantised(segment, subspaces, bits)
        for segment in (512, 1024, 4096)
        for subspaces, bits in ((2, 6), (4, 4), (4, 6), (8, 4))
    ),
    "residual_pq": tuple(residual(s, m) for s in (512, 1024) for m in (2, 4, 8)),
    "streaming": (Variant("streaming", "streaming"),),
}
"""By method, what shapes its metadata: unit, or segment and codes."""

KEPT = ((4, WINDOW), (64, WINDOW), (SINK, 16), (SINK, 256))
"""First and newest tokens that are always read."""

DENSE = (0, 1, 2)
"""First layers that read everything."""


@dataclass(frozen=True)
class Candidate:
    """One set of options.

    Attributes:
        method: of the registry.
        axis: what differs from the middle: "shape", "kept" or "dense".
        variant: with its shape, sink and window.
        dense_layers: first layers that read everything.
    """

    method: str
    axis: str
    variant: Variant
    dense_layers: int = 0

    @property
    def shape(self) -> str:
        """As tables call it."""
        variant = self.variant
        paged = variant.name == self.method and variant.selection.unit_size is None
        return f"{variant.unit}" if paged else variant.name.removeprefix(self.method).strip()


def middle_of(method: str) -> Variant:
    """The shape that is served: sinks, windows and dense layers are tried with it."""
    served = IndexOptions()
    return next(
        variant
        for variant in SHAPES[method]
        if variant.index == served and variant.unit == UNIT_SIZE
    )


def candidates() -> Iterator[Candidate]:
    """Every shape of a method; around the served one, every sink and window, and dense layers."""
    for method, shapes in SHAPES.items():
        for variant in shapes:
            yield Candidate(method, "shape", variant)
        middle = middle_of(method)
        for sink, window in KEPT:
            yield Candidate(method, "kept", replace(middle, sink=sink, window=window))
        for layers in DENSE[1:]:
            yield Candidate(method, "dense", middle, layers)


def total_bytes(
    variant: Variant, budget: int, dense_layers: int, layers: int, lengths: IntArray, dim: int
) -> float:
    """Bytes of a step and KV head over all layers, the dense ones included."""
    sparse = bytes_read(variant, variant.plan(lengths, budget), lengths, dim).total
    return (layers - dense_layers) * sparse + dense_layers * dense_bytes(lengths, dim)


def dense_bytes(lengths: IntArray, dim: int) -> float:
    """K and V of the whole context, in one layer and KV head."""
    return float(lengths.mean()) * 2 * dim * 2


def budget_within(
    candidate: Candidate, total: float, layers: int, lengths: IntArray, dim: int
) -> int | None:
    """Largest budget with which all layers together read at most `total`; None if none does."""
    sparse = layers - candidate.dense_layers
    left = total - candidate.dense_layers * dense_bytes(lengths, dim)
    return equal_budget(candidate.variant, left / sparse, lengths, dim)
