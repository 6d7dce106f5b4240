"""The device protocol: what a `kernels/<device>` folder provides, and how it is found."""

from importlib import import_module
from typing import Protocol

import torch

from .segment_ops import SegmentOps
from .summaries import PageSummary
from .types import (
    Candidates,
    Goal,
    KeptUnits,
    Ranking,
    Reduction,
    ScoreInputs,
    Selection,
    TokenLists,
)

DEVICES = {
    "reference": "sgl_sparsekv.kernels.reference",
    "cpu": "sgl_sparsekv.kernels.cpu",
    "triton": "sgl_sparsekv.kernels.triton",
}
"""Device name -> module with a `load() -> Ops`, imported on use."""


class Ops(SegmentOps, Protocol):
    """Work of one decode layer, in order; shapes are defined in `sgl_sparsekv.types`.

    Results depend on the row alone: the same row gives the same bits in any batch and with any
    number of threads.
    """

    name: str

    def summaries(self) -> frozenset[str] | None:
        """Names of the page summaries this device has kernels for; None means any."""
        ...

    @property
    def has_segments(self) -> bool:
        """Whether this device has `SegmentOps`."""
        ...

    @property
    def takes_planes(self) -> bool:
        """Whether it compiles functions that a summary brings (`PageSummary.kernels`)."""
        ...

    def summarise(
        self, summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor, units: torch.Tensor
    ) -> None:
        """Write `fields[units]` from the pool's keys.

        Args:
            summary: what to compute.
            keys: `[slots, H, D]`, the pool's K.
            fields: `[pool units, H, planes, W]`, written at `units`.
            units: int64 `[m]`, full physical units.
        """
        ...

    def score(
        self,
        summary: PageSummary,
        q: torch.Tensor,
        fields: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Score candidate units from their metadata.

        Args:
            known: float32 `[rows, H, G]`, log-sum-exp of scaled q·k over what is read in any case:
                it joins the softmax. Not with `Reduction.MAX`.

        Returns:
            float32 `[rows, H, U]`: log of the reduced softmax over each row's candidates (with
            `Reduction.MAX` the largest scaled score of the group); -inf outside `[begin, end)`.
            Metadata outside the candidates is never read.
        """
        ...

    def score_exact(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        unit_size: int,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Score candidate units by their true share of attention (reads every key).

        Returns:
            As `score`, with the unit's log-sum-exp of scaled q·k in place of an estimate.
        """
        ...

    def known(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        kept: KeptUnits,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
    ) -> torch.Tensor:
        """Log-sum-exp of scaled q·k over what is read in any case.

        Args:
            q: `[rows, H, G, D]`.
            keys: `[slots, H, D]`, the pool's K.
            kept: sinks, window and tail of the rows, at least one unit of each.
            tail_lengths: int32 `[rows]`, tokens of each last unit (1..unit_size).
            scale: softmax scale.
            unit_size: tokens per unit.

        Returns:
            float32 `[rows, H, G]`, as `score` takes it.
        """
        ...

    def sample(
        self, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
    ) -> Ranking:
        """How far down scores are to be read, from the keys of a sample of units.

        Args:
            scores: float32 `[rows, H, U]`, logs of estimated shares of attention; -inf for no
                candidates. May be written to.
            inputs: what they were made from, with `known`.
            coverage: float32 `[rows]`, share to cover with what is read in any case; 1: all.
            size: units of a row and KV head to look at, drawn by the cube roots of their shares.

        Returns:
            The scores, each row and KV head moved by a constant so that their shares have the sum
            that the sample says, and the score below which as much attention lies as may be left
            unread: -inf where everything must be read, +inf where nothing need be.
        """
        ...

    def allot(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
        lowest: torch.Tensor,
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        """How many units each KV head reads; what `select` then keeps.

        Args:
            scores: float32 `[rows, H, U]`, logs of shares of all attention.
            candidates, num_units: as of `select`.
            counts: int32 `[rows]`, ceilings.
            lowest: float32 `[rows, H]`, score below which nothing is read.
            pooled: see `Goal`.

        Returns:
            int32 `[rows, H]`: sinks, window and the candidates with at least the lowest score, at
            most the ceiling. Of pooled rows the ceilings of all KV heads add up to H times the
            row's: each has `POOL_FLOOR` of it, the rest goes to the largest shares, among equal
            ones to the lower head.
        """
        ...

    def cover(self, scores: torch.Tensor, inputs: ScoreInputs, goal: Goal, size: int) -> Selection:
        """`sample`, `allot`, then `select`: all at once.

        Args:
            scores, inputs, size: as of `sample`; the counts of the inputs are ceilings.
            goal: what decides how much is read below them.
        """
        ...

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """Keep sinks, window and the best candidates; equal scores go to the lower unit.

        Args:
            scores: float32 `[rows, H, U]`.
            candidates: units before `begin` and from `end` on are always kept.
            num_units: int32 `[rows]`, units of the sequence, the partial tail included.
            counts: int32 `[rows, H]`, units to keep: sinks + window + ranked, at most `num_units`;
                `[rows]` where every KV head keeps as many.
        """
        ...

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: torch.Tensor,
        counts: torch.Tensor,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode attention over listed units; each K and V row is read once for its G queries.

        Args:
            q: `[rows, H, G, D]`.
            keys: `[slots, H, D]`, the pool's K.
            values: `[slots, H, Dv]`, the pool's V.
            table: int32 `[rows, H, n]`, physical units; a head stride of 0 (one list for all
                heads) is allowed.
            counts: int32 `[rows, H]`, listed units, at least 1; `[rows]` where every KV head has
                as many, as it must where they share one list.
            tail_lengths: int32 `[rows]`, tokens of the last listed unit that exist (1..unit_size).
            scale: softmax scale.
            unit_size: tokens per unit.

        Returns:
            out `[rows, H, G, Dv]` in q's dtype and lse float32 `[rows, H, G]` (natural log).
        """
        ...

    def attend_lists(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        lists: TokenLists,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `attend`, over single tokens that are listed by their places in the rows."""
        ...

    def merge(
        self, out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join two attention states `[..., Dv]`, `[...]` over disjoint keys."""
        ...


class PrefillOps(Ops, Protocol):
    """A device whose prefill is ours too; elsewhere SGLang's dense backend runs it."""

    def prefill(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Causal attention of the newest T tokens of one request; cost T x L.

        Args:
            q: `[T, H * G, D]`, queries of positions L - T .. L - 1.
            keys: `[slots, H, D]`, the pool's K, the T new rows included.
            values: `[slots, H, Dv]`.
            slots: int64 `[L]`, slot of each position.
            scale: softmax scale.

        Returns:
            `[T, H * G, Dv]` in q's dtype.
        """
        ...


def load_ops(device: str) -> Ops:
    """Load the ops of a device.

    Raises:
        ValueError: the device is unknown.
        UnsupportedSetup: its kernels were not built, or cannot run on this machine.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {sorted(DEVICES)}, got {device!r}")
    ops: Ops = import_module(DEVICES[device]).load()
    return ops
