"""The device protocol: what a `kernels/<device>` folder provides, and how it is found."""

from importlib import import_module
from typing import Protocol

import torch

from .segment_records import ResidualIndex, SegmentIndex
from .summaries import CodeSummary, PageSummary
from .types import (
    Candidates,
    Goal,
    KeptUnits,
    Ranking,
    Reduction,
    ScoreInputs,
    Selection,
)

DEVICES = {
    "reference": "sgl_sparsekv.kernels.reference",
    "cpu": "sgl_sparsekv.kernels.cpu",
    "triton": "sgl_sparsekv.kernels.triton",
}
"""Device name -> module with a `load() -> Ops`, imported on use."""


class Ops(Protocol):
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
        """Whether this device has the ops of segment records: `index_segments` to `estimate`."""
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

    def index_segments(
        self,
        summary: CodeSummary,
        keys: torch.Tensor,
        slots: torch.Tensor,
        skips: torch.Tensor,
        index: SegmentIndex,
        records: torch.Tensor,
    ) -> None:
        """Write the records of whole segments; each is the same bits in any company.

        Keys that are not finite count as zero.

        Args:
            summary: what to compute.
            keys: `[slots, H, D]`, the pool's K.
            slots: int64 `[n, S]`, slots of each segment's tokens, in order.
            skips: int64 `[n]`, first tokens of each segment not to learn from; they get codes.
            index: its codes and codebooks are written at `records`.
            records: int64 `[n]`.
        """
        ...

    def score_codes(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        index: SegmentIndex | ResidualIndex,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        known: torch.Tensor | None = None,
        reach: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Score candidate tokens by what their codes stand for, uncoded ones by their keys.

        Args:
            candidates: with units of one token, so its table holds slots.
            known: see `score`.
            reach: int32 `[rows]`. Of records with clusters, these are opened in the order of what
                a token at their centroid is worth among all that have a record, each as if it
                were its centroid, until they hold so many candidates. Tokens of
                the others weigh as their centroids do; they score as these with `known`, else -inf.
                None: all are open.

        Returns:
            As `score`; tokens of one code and m = 1 have equal scores.
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

    def choose(self, inputs: ScoreInputs, reach: int) -> tuple[Selection, torch.Tensor]:
        """`score_codes` of clusters within reach, `select`, then `weigh`: all at once.

        Args:
            inputs: with units of one token, records of clusters and nothing known.
            reach: candidates that open clusters hold, for each that is kept; see `score_codes`.

        Returns:
            the selection, and the weights of the rest.
        """
        ...

    def weigh(
        self,
        q: torch.Tensor,
        index: ResidualIndex,
        candidates: Candidates,
        selection: Selection,
        scale: float,
        reduction: Reduction,
        reach: torch.Tensor,
        unit_size: int,
    ) -> torch.Tensor:
        """What the candidates of each cluster that were not read weigh.

        Clusters are opened as by `score_codes`. Tokens of open ones weigh what their codes say,
        those of the others what their centroid does.

        Args:
            q: `[rows, H, G, D]`.
            index: their records.
            candidates: with units of one token; their table is not looked at.
            selection: what was read, in units of `unit_size` tokens.
            scale: softmax scale.
            reduction: that clusters are opened by.
            reach: int32 `[rows]`, candidates that open clusters hold.
            unit_size: tokens per unit of the selection.

        Returns:
            float32 `[rows, H, G, 16 * segments]`, log of the sum of exp(scaled q·k) over them; -inf
            where there are none, or no record.
        """
        ...

    def estimate(
        self, weights: torch.Tensor, index: ResidualIndex, out: torch.Tensor, lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join what was read with clusters that weigh so much, each having its mean value.

        Args:
            weights: as `weigh` returns them.
            index: records of the clusters.
            out: `[rows, H, G, Dv]` of what was read.
            lse: float32 `[rows, H, G]`.

        Returns:
            the same of both.
        """
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
