"""Tensor bundles that cross the borders between parts. Shapes use

rows  requests of the batch (or of one group of it)      H  KV heads of this rank
G     query heads per KV head (`group_size`)              D  head_dim
U     widest unit table of the rows                       n  widest selection of the rows
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch


class Reduction(StrEnum):
    """How G query heads share one score; the softmax runs over the candidate units."""

    MAX_SOFTMAX = "max_softmax"
    MEAN_SOFTMAX = "mean_softmax"


@dataclass(frozen=True)
class PageSummary:
    """What a unit's metadata holds, and its meaning in plain torch.

    Attributes:
        name: names the field in the pool and the fused kernels of a device.
        planes: one name per vector `[D]` stored for each unit and KV head.
        summarise: keys `[m, unit_size, H, D]` -> planes `[m, H, planes, D]` in the keys' dtype.
        score: float32 q `[..., G, D]`, float32 planes `[..., u, planes, D]` -> `[..., G, u]`,
            an estimate of (or bound on) max q·k over the unit, without the softmax scale.
        ulps: how far two correct implementations may lie apart, in units in the last place of the
            vector's largest channel; 0 when planes are copies of keys.
    """

    name: str
    planes: tuple[str, ...]
    summarise: Callable[[torch.Tensor], torch.Tensor]
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ulps: int = 0


@dataclass(frozen=True)
class Candidates:
    """The units that a method may rank: neither sinks nor window.

    Attributes:
        unit_table: int32 `[rows, U]`, physical unit of each logical unit.
        begin: int32 `[rows]`, first candidate logical unit (sinks lie before it).
        end: int32 `[rows]`, one past the last candidate (the window lies behind it).
    """

    unit_table: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor


@dataclass(frozen=True)
class ScoreInputs:
    """Everything a method may look at to score candidate units of one layer.

    Attributes:
        q: `[rows, H, G, D]`, rotated queries.
        keys: `[slots, H, D]`, the pool's K of this layer.
        fields: `[pool units, H, planes, D]` of the method's summary, or None.
        candidates: units to score.
        scale: softmax scale of the layer.
        reduction: from G query heads to one score.
        unit_size: tokens per unit.
    """

    q: torch.Tensor
    keys: torch.Tensor
    fields: torch.Tensor | None
    candidates: Candidates
    scale: float
    reduction: Reduction
    unit_size: int


@dataclass(frozen=True)
class Selection:
    """Chosen units per request and KV head, in ascending logical order; the tail unit is last.

    Attributes:
        logical: int32 `[rows, H, n]`, logical units, padded with -1.
        physical: int32 `[rows, H, n]`, the same units in the pool, padded with 0.
        counts: int32 `[rows]`, valid entries of each row (the same for every KV head).
    """

    logical: torch.Tensor
    physical: torch.Tensor
    counts: torch.Tensor
