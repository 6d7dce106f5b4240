"""Tokens ranked by clusters first, and what clusters weigh, in plain torch."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sgl_sparsekv.segment_records import ResidualIndex
from sgl_sparsekv.summaries import ResidualSummary
from sgl_sparsekv.types import Reduction

from .rows import reduce_group, reduce_shares


@dataclass(frozen=True)
class Clusters:
    """Clusters of a row's candidates, in the order of its segments.

    Attributes:
        logits: scaled q·centroid, float32 `[H, G, C]`.
        labels: of the candidates, int64 `[H, n]`; C for tokens without a record.
        sizes: candidates of each cluster, float32 `[H, C]`.
        places: where clusters stand among 16 of each segment, int64 `[C]`.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    sizes: torch.Tensor
    places: torch.Tensor

    DEEP: ClassVar[float] = 80.0
    """What open clusters have left counts for nothing so far below the heaviest token in one."""

    @classmethod
    def of(
        cls, q: torch.Tensor, index: ResidualIndex, row: int, span: tuple[int, int]
    ) -> "Clusters":
        """Of scaled queries `[H, G, D]` and a row's candidates [begin, end)."""
        begin, end = span
        size, many = index.segment_size, index.entries
        known = [r for r in enumerate(index.table[row].tolist()) if r[1] >= 0 and r[0] * size < end]
        count = many * len(known)
        labels = torch.full((len(q), end), count)
        logits, places = [q.new_empty(*q.shape[:2], 0)], torch.arange(0)
        for nth, (segment, record) in enumerate(known):
            own = index.clusters(record).long() + many * nth
            first = segment * size
            labels[:, first : first + size] = own[:, : end - first]
            logits.append(q @ index.cluster_keys(record).mT)
            places = torch.cat((places, torch.arange(many) + many * segment))
        labels = labels[:, begin:]
        sizes = torch.zeros(len(q), count + 1).scatter_add(1, labels, torch.ones(labels.shape))
        return cls(torch.cat(logits, -1), labels, sizes[:, :count], places)

    def opened(self, reduction: Reduction, reach: int) -> torch.Tensor:
        """Clusters in the order of a token's share at their centroids, the first ones among equals,
        until they hold `reach` candidates: bool `[H, C]`."""
        lse = (self.logits + self.sizes.log()[:, None]).logsumexp(-1)
        ranks = reduce_shares(self.logits, lse, reduction)
        order = ranks.masked_fill(self.sizes == 0, -torch.inf)
        order = order.argsort(dim=-1, descending=True, stable=True)
        there = self.sizes.gather(-1, order)
        among = (there.cumsum(-1) - there < reach) & (there > 0)
        return torch.zeros_like(among).scatter(-1, order, among)

    def scores(
        self, logits: torch.Tensor, reduction: Reduction, reach: int, known: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores of the candidates `[H, n]`, see `Ops.score_codes`.

        Args:
            logits: by codes, and keys of tokens without a record, `[H, G, n]`.
            reduction: over the group.
            reach: candidates that open clusters hold.
            known: `[H, G]`, see `Ops.score_codes`.
        """
        shut = ~self._of_tokens(self.opened(reduction, reach), True)
        found = reduce_group(self._mixed(logits, shut), reduction, known)
        return found if known is not None else found.masked_fill(shut, -torch.inf)

    def weights(
        self, logits: torch.Tensor, read: torch.Tensor, opened: torch.Tensor
    ) -> torch.Tensor:
        """Log of what the unread candidates of each cluster weigh: `[H, G, C]`.

        Args:
            logits: by codes, `[H, G, n]`.
            read: of the candidates, bool `[H, n]`.
            opened: bool `[H, C]`.
        """
        shut = ~self._of_tokens(opened, True)
        gains = torch.where(shut, ResidualSummary.BY_CENTROID, ResidualSummary.BY_CODE)
        mixed = self._mixed(logits, shut) + gains[:, None]
        inside = self._of_tokens(opened, False)
        top = mixed.masked_fill(~inside[:, None], -torch.inf).amax(-1, keepdim=True)
        mixed = mixed.masked_fill(read[:, None], -torch.inf)
        labels = self.labels[:, None].expand(mixed.shape)
        every = mixed.new_full((*mixed.shape[:2], self.sizes.shape[1] + 1), -torch.inf)
        best = every.scatter_reduce(2, labels, mixed, "amax").clamp(min=torch.finfo().min)
        shares = (mixed - best.gather(2, labels)).exp()
        sums = torch.zeros_like(every).scatter_add(2, labels, shares)
        found = (best + sums.log())[..., :-1]
        return found.masked_fill(opened[:, None] & (found < top - self.DEEP), -torch.inf)

    def _of_tokens(self, marks: torch.Tensor, others: bool) -> torch.Tensor:
        """Marks of clusters `[H, C]` for candidates `[H, n]`; `others` have no record."""
        padded = torch.nn.functional.pad(marks, (0, 1), value=others)
        return padded.gather(1, self.labels)

    def _mixed(self, logits: torch.Tensor, shut: torch.Tensor) -> torch.Tensor:
        """Logits of candidates `[H, G, n]`, those of shut clusters being their centroids'."""
        every = torch.nn.functional.pad(self.logits, (0, 1))
        own = every.gather(2, self.labels[:, None].expand(logits.shape))
        return torch.where(shut[:, None], own, logits)
