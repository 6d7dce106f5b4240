"""Compare metadata with the keys it stands for."""

from dataclasses import dataclass

import torch

from ..types import PageSummary
from .pool import PageMetadata


@dataclass(frozen=True)
class Mismatch:
    """A sealed unit whose field is not what its keys give."""

    summary: str
    layer: int
    unit: int
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.summary} of layer {self.layer}, physical unit {self.unit} differs from its "
            f"keys by {self.worst:g}"
        )


def find_mismatches(
    metadata: PageMetadata, layer: int, keys: torch.Tensor, units: torch.Tensor
) -> list[Mismatch]:
    """Recompute the fields of the sealed ones among `units` `[n]` from K `[slots, H, D]`.

    Copies of keys (min, max) must be equal; statistics may differ by the summary's `ulps`.
    """
    units = torch.unique(units)
    units = units[metadata.sealed[units]]
    found: list[Mismatch] = []
    for summary in metadata.summaries if units.numel() else ():
        rows = keys.unflatten(0, (-1, metadata.geometry.unit_size))[units]
        expected = summary.summarise(rows).float()
        actual = metadata.fields(summary.name, layer)[units].float()
        error = _excess(summary, expected, actual, keys.dtype).flatten(1).amax(1)
        found += [
            Mismatch(summary.name, layer, int(units[i]), float(error[i]))
            for i in torch.nonzero(~(error <= 0)).flatten().tolist()
        ]
    return found


def _excess(
    summary: PageSummary, expected: torch.Tensor, actual: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Difference beyond what the summary allows, 0 where equal; NaN never equals a number."""
    both_nan = expected.isnan() & actual.isnan()
    gap = torch.where((expected == actual) | both_nan, 0.0, (expected - actual).abs())
    if not summary.ulps:
        return gap
    allowed = expected.abs().amax(-1, keepdim=True) * summary.ulps * torch.finfo(dtype).eps
    return (gap - allowed).clamp(min=0) + torch.where(gap.isnan(), gap, 0.0)
