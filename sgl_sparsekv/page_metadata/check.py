"""Compare metadata with the keys it stands for."""

from dataclasses import dataclass

import torch

from ..ops import Ops
from ..summaries import PageSummary
from .pool import PageMetadata
from .records import Cache, SegmentRecords, write_records


@dataclass(frozen=True)
class Mismatch:
    """A sealed unit or a segment's record that is not what its keys give.

    Attributes:
        summary: what is wrong.
        layer: counted from this rank's first.
        unit: physical unit, or number of the record.
        worst: largest difference of a field, or entries of a record that differ.
    """

    summary: str
    layer: int
    unit: int
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.summary} of layer {self.layer}, unit or record {self.unit}, differs from its "
            f"keys by {self.worst:g}"
        )


def find_mismatches(
    metadata: PageMetadata, ops: Ops, layer: int, keys: torch.Tensor, units: torch.Tensor
) -> list[Mismatch]:
    """Summarise the sealed ones among `units` `[n]` again from K `[slots, H, D]`, and compare.

    Copies of keys (min, max) must be equal; statistics may differ by the summary's `ulps`, which
    they do where a GPU computes them within another kernel.
    """
    units = torch.unique(units)
    units = units[metadata.sealed[units]]
    found: list[Mismatch] = []
    for summary in metadata.summaries if units.numel() else ():
        unit_size = summary.tokens or metadata.geometry.unit_size
        finer = metadata.geometry.finer(units, summary.tokens)
        rows = keys.unflatten(0, (-1, unit_size))[finer].flatten(0, 1)
        actual = metadata.fields(summary.name, layer)[finer]
        expected = torch.empty_like(actual)
        ops.summarise(summary, rows, expected, torch.arange(len(finer), device=units.device))
        error = _excess(summary, expected.float(), actual.float(), keys.dtype).flatten(1).amax(1)
        found += [
            Mismatch(summary.name, layer, int(finer[i]), float(error[i]))
            for i in torch.nonzero(~(error <= 0)).flatten().tolist()
        ]
    return found


def find_record_mismatches(
    records: SegmentRecords,
    ops: Ops,
    layer: int,
    cache: Cache,
    slots: torch.Tensor,
    skips: torch.Tensor,
    held: torch.Tensor,
) -> list[Mismatch]:
    """Index segments again and compare bits with their records.

    Args:
        slots: int64 `[n, S]`, of the segments' tokens.
        skips: int64 `[n]`, see `Ops.index_segments`.
        held: int64 `[n]`, records that stand for them.
    """
    arrays = records.arrays[layer]
    fresh = {name: array.new_zeros(len(held), *array.shape[1:]) for name, array in arrays.items()}
    write_records(ops, records.summary, cache, slots, skips, fresh, torch.arange(len(held)))
    found = []
    for i, record in enumerate(held.tolist()):
        differ = sum(int((new[i] != arrays[name][record]).sum()) for name, new in fresh.items())
        if differ:
            found.append(Mismatch(records.summary.name, layer, record, differ))
    return found


def _excess(
    summary: PageSummary, expected: torch.Tensor, actual: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Difference beyond what the summary allows, 0 where equal; NaN never equals a number."""
    both_nan = expected.isnan() & actual.isnan()
    gap = torch.where((expected == actual) | both_nan, 0.0, (expected - actual).abs())
    if not summary.ulps:
        return gap
    largest = expected.abs().nan_to_num().amax(-1, keepdim=True)
    allowed = largest * summary.ulps * torch.finfo(dtype).eps
    return (gap - allowed).clamp(min=0) + torch.where(gap.isnan(), gap, 0.0)
