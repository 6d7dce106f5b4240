"""What a method reads in a decode step, and the budget at which it reads as much as another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.quality.eight_bit import SCALE
from bench.quality.methods import Variant
from sgl_sparsekv.geometry import ceil_div
from sgl_sparsekv.selection.policy import IntArray, RowPlan
from sgl_sparsekv.selection.two_level import OVERSAMPLING
from sgl_sparsekv.summaries import BoundSummary, CodeSummary, ResidualSummary

ELEMENT = 2
"""Bytes of an element of K, V and metadata."""


@dataclass(frozen=True)
class BytesRead:
    """Mean bytes of a decode step, layer and KV head.

    Attributes:
        metadata: read to choose: planes, bounds, codes, codebooks, keys without a code.
        kv: K and V of what is attended.
    """

    metadata: float
    kv: float

    @property
    def total(self) -> float:
        """Both."""
        return self.metadata + self.kv


def bytes_read(variant: Variant, plan: RowPlan, lengths: IntArray, dim: int) -> BytesRead:
    """What rows of a plan read, keys and values being `dim` elements of two bytes."""
    metadata = np.zeros_like(lengths) if variant.free else _metadata(variant, plan, lengths, dim)
    return BytesRead(metadata.mean().item(), (plan.attended * 2 * dim * ELEMENT).mean().item())


def equal_budget(variant: Variant, target: float, lengths: IntArray, dim: int) -> int | None:
    """Largest budget in tokens that reads at most `target` bytes; None if no budget does."""
    whole = variant.geometry.unit_size
    low = whole * (ceil_div(variant.sink, whole) + ceil_div(variant.window, whole) + 1)
    high = int(lengths.max()) + whole

    def fits(budget: int) -> bool:
        return bytes_read(variant, variant.plan(lengths, budget), lengths, dim).total <= target

    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _metadata(variant: Variant, plan: RowPlan, lengths: IntArray, dim: int) -> IntArray:
    begin, end = plan.begin * plan.unit_size, plan.end * plan.unit_size
    summary = variant.selection.segments(variant.index)
    if summary is None:
        return _planes(variant, end - begin, dim)
    size = summary.segment_size
    whole = lengths // size * size
    recorded = np.minimum(end, whole) - np.minimum(begin, whole)
    last = np.minimum(-(-end // size), whole // size)
    records = np.where(recorded > 0, last - begin // size, 0)
    rest = end - begin - recorded
    if isinstance(summary, BoundSummary):
        looked_at = -(-OVERSAMPLING * plan.counts * plan.unit_size // size) * size
        pages = _planes(variant, np.minimum(recorded, looked_at) + rest, dim)
        return records * len(summary.page.planes) * dim * ELEMENT + pages
    if isinstance(summary, ResidualSummary):
        opened = np.minimum(recorded, ResidualSummary.REACH * plan.counts)
        return opened * _size(summary, dim, ("codes", "places")) // size + (
            records * _size(summary, dim, ("centroids", "ends", "codebooks", "scales"))
            + records * variant.estimate * _size(summary, dim, ("values",))
            + np.minimum(records, 2) * _size(summary, dim, ("labels",))  # of cut segments
            + rest * dim * ELEMENT
        )
    assert isinstance(summary, CodeSummary)
    books = np.minimum(records, 1) if variant.inherited else records
    values = records * summary.codes * (dim + 1) if variant.estimate else 0
    vectors = books * summary.codes * dim + values + rest * dim
    return recorded * summary.subspaces + vectors * ELEMENT


def _size(summary: ResidualSummary, dim: int, names: Sequence[str]) -> int:
    """Bytes of some arrays of a record."""
    shapes = summary.shapes(dim, dim)
    return sum(
        math.prod(shapes[name][0]) * (shapes[name][1] or torch.bfloat16).itemsize for name in names
    )


def _planes(variant: Variant, tokens: IntArray, dim: int) -> IntArray:
    """Bytes of the page planes of so many tokens."""
    found = np.zeros_like(tokens)
    for summary in variant.selection.summaries:
        width = summary.width or dim
        each = width + SCALE if variant.eight_bit else width * ELEMENT
        plane = len(summary.planes) * each
        found += tokens // (summary.tokens or variant.unit) * plane
    return found
