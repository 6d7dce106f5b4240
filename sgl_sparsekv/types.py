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


@dataclass(frozen=True)
class AttendShape:
    """One class of layers at one batch size: what a paged attend is made for.

    Attributes:
        rows: requests of the batch, padding included.
        heads: KV heads of this rank, H.
        group: query heads per KV head, G.
        head_dim: D of q and K.
        v_head_dim: Dv of V and the result.
        unit_size: tokens per unit.
        max_units: most units that one (row, head) can read.
        dtype: of q, K and V.
        device: where everything lies.
        graph: the runs are captured, so every buffer keeps its place.
    """

    rows: int
    heads: int
    group: int
    head_dim: int
    v_head_dim: int
    unit_size: int
    max_units: int
    dtype: torch.dtype
    device: torch.device
    graph: bool


@dataclass(frozen=True)
class StepShape:
    """Largest extents of a server's decode steps: what static buffers are allocated for.

    Attributes:
        max_rows: rows of a batch.
        requests: rows of `req_to_token`.
        max_units: units of the longest context.
        max_selected: units of the largest selection.
        pool_units: physical units of the pool.
        heads: KV heads of this rank.
        group: query heads per KV head.
        head_dim: channels of K.
        v_head_dim: channels of V.
        unit_size: tokens per unit.
        page_size: slots per page.
        dtype: element type of the cache.
        device: where the cache lies.
        formulas: names of the formulas that served methods rank by.
        reduction: from the query heads of a group to one score.
    """

    max_rows: int
    requests: int
    max_units: int
    max_selected: int
    pool_units: int
    heads: int
    group: int
    head_dim: int
    v_head_dim: int
    unit_size: int
    page_size: int
    dtype: torch.dtype
    device: torch.device
    formulas: frozenset[str]
    reduction: Reduction
