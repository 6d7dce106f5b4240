"""The ops of methods on segments, a part of the device protocol."""

from collections.abc import Mapping
from typing import Protocol

import torch

from .segment_records import ResidualIndex, SegmentIndex
from .summaries import CodeSummary, ResidualSummary
from .types import Candidates, Reduction, Rest, ScoreInputs, Selection


class SegmentOps(Protocol):
    """What segment records are built and read by; see `sgl_sparsekv.ops.Ops`."""

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

    def index_residuals(
        self,
        summary: ResidualSummary,
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        skips: torch.Tensor,
        into: Mapping[str, torch.Tensor],
        records: torch.Tensor,
    ) -> None:
        """As `index_segments`, of clusters, codes of what is left of keys, and values.

        Args:
            cache: the pool's K `[slots, H, D]` and V `[slots, H, Dv]`.
            into: by the names of `ResidualSummary.shapes`, written at `records`.
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

    def attend_all(
        self,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        selection: Selection,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
        rest: Rest,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`attend` over a selection, then `estimate`: all at once.

        Args:
            q, tail_lengths, scale, unit_size: as of `attend`.
            cache: the pool's K and V.
            selection: what is read.
            rest: what answers for the others.

        Returns:
            out of both, and lse of what was read.
        """
        ...
