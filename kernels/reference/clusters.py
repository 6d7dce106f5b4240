"""Tokens ranked by clusters first, in plain torch."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.types import Reduction, ResidualIndex

from .rows import reduce_group, reduce_shares


@dataclass(frozen=True)
class Clusters:
    """Clusters of a row's candidates.

    Attributes:
        logits: scaled q·centroid, float32 `[H, G, C]`.
        labels: of the candidates, int64 `[H, n]`; C for tokens without a record.
        sizes: candidates of each cluster, float32 `[H, C]`.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    sizes: torch.Tensor

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
        logits = [q.new_empty(*q.shape[:2], 0)]
        for nth, (segment, record) in enumerate(known):
            own = index.clusters(record).long() + many * nth
            first = segment * size
            labels[:, first : first + size] = own[:, : end - first]
            logits.append(q @ index.cluster_keys(record).mT)
        labels = labels[:, begin:]
        sizes = torch.zeros(len(q), count + 1).scatter_add(1, labels, torch.ones(labels.shape))
        return cls(torch.cat(logits, -1), labels, sizes[:, :count])

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
        count = self.sizes.shape[1]
        coded = (self.labels < count)[:, None]
        every = torch.nn.functional.pad(self.logits, (0, 1))
        own = every.gather(2, self.labels[:, None].expand(logits.shape))
        whole = torch.where(coded, own, logits)  # every token as its centroid
        ranks = reduce_shares(self.logits, whole.logsumexp(-1), reduction)
        opened = _opened(ranks.masked_fill(self.sizes == 0, -torch.inf), self.sizes, reach)
        shut = torch.nn.functional.pad(~opened, (0, 1)).gather(1, self.labels)[:, None]
        found = reduce_group(torch.where(shut, whole, logits), reduction, known)
        return found if known is not None else found.masked_fill(shut[:, 0], -torch.inf)


def _opened(ranks: torch.Tensor, sizes: torch.Tensor, reach: int) -> torch.Tensor:
    """Clusters in the order of their ranks, the first ones among equals, until they hold `reach`
    tokens: ranks and sizes `[H, C]` -> bool `[H, C]`."""
    order = ranks.argsort(dim=-1, descending=True, stable=True)
    there = sizes.gather(-1, order)
    among = (there.cumsum(-1) - there < reach) & (there > 0)
    return torch.zeros_like(among).scatter(-1, order, among)
