"""The ops of `sgl_sparsekv.ops.Ops`, one function body per op, float32 throughout."""

from dataclasses import dataclass

import torch

from sgl_sparsekv.types import (
    Candidates,
    CodeSummary,
    PageSummary,
    Reduction,
    ResidualIndex,
    SegmentIndex,
    Selection,
)

from . import records

LARGEST = torch.finfo(torch.float32).max
"""Rank of a score that is not a number: kept if there is room, behind what is always kept."""


class ReferenceOps:
    """Plain torch; any method runs here, from the formula in its own file."""

    name = "reference"
    has_segments = True

    def summaries(self) -> frozenset[str] | None:
        """None: every summary, through its torch formula."""
        return None

    def summarise(
        self, summary: PageSummary, keys: torch.Tensor, fields: torch.Tensor, units: torch.Tensor
    ) -> None:
        """See `Ops.summarise`."""
        if units.numel() == 0:
            return
        fields[units] = summary.summarise(unit_rows(keys, units, keys.shape[0] // fields.shape[0]))

    def index_segments(
        self,
        summary: CodeSummary,
        keys: torch.Tensor,
        slots: torch.Tensor,
        skips: torch.Tensor,
        index: SegmentIndex,
        records: torch.Tensor,
    ) -> None:
        """See `Ops.index_segments`."""
        for segment, skip, record in zip(slots, skips.tolist(), records.tolist(), strict=True):
            index.codes[record], index.codebooks[record] = summary.build(keys[segment], skip)

    def score(
        self,
        summary: PageSummary,
        q: torch.Tensor,
        fields: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
    ) -> torch.Tensor:
        """See `Ops.score`."""
        rows, heads, _, _ = q.shape
        assert summary.score is not None, f"{summary.name} does not rank"
        scores = q.new_full((rows, heads, candidates.unit_table.shape[1]), -torch.inf).float()
        for row, begin, end in candidate_spans(candidates):
            units = candidates.unit_table[row, begin:end].long()
            planes = fields[units].movedim(1, 0).float()  # [H, u, planes, D]
            estimate = summary.score(q[row].float(), planes) * scale
            scores[row, :, begin:end] = reduce_group(estimate, reduction)
        return scores

    def score_exact(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        unit_size: int,
    ) -> torch.Tensor:
        """See `Ops.score_exact`."""
        rows, heads, _, _ = q.shape
        scores = q.new_full((rows, heads, candidates.unit_table.shape[1]), -torch.inf).float()
        for row, begin, end in candidate_spans(candidates):
            k = unit_rows(keys, candidates.unit_table[row, begin:end].long(), unit_size).float()
            logits = torch.einsum("hgd,uthd->hgut", q[row].float(), k) * scale
            scores[row, :, begin:end] = reduce_group(logits.logsumexp(-1), reduction)
        return scores

    def score_codes(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        index: SegmentIndex | ResidualIndex,
        candidates: Candidates,
        scale: float,
        reduction: Reduction,
        reach: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Ops.score_codes`: keys of coded tokens are put together from their codes."""
        rows, heads, _, _ = q.shape
        scores = q.new_full((rows, heads, candidates.unit_table.shape[1]), -torch.inf).float()
        for row, begin, end in candidate_spans(candidates):
            slots = candidates.unit_table[row, :end].long()
            k = keys[slots].float().movedim(1, 0)  # [H, end, D]
            for segment, record in enumerate(index.table[row].tolist()):
                first = segment * index.segment_size
                if record >= 0 and first < end:
                    coded = records.decoded(index, record)
                    k[:, first : first + index.segment_size] = coded[:, : end - first]
            logits = q[row].float() @ k[:, begin:].mT * scale
            whole = logits[..., :0]
            if reach is not None and isinstance(index, ResidualIndex):
                clusters = Clusters.of(q[row].float() * scale, index, row, begin, end)
                logits, whole = clusters.opened(logits, reduction, int(reach[row]))
            every = reduce_group(torch.cat((logits, whole), -1), reduction)
            scores[row, :, begin:end] = every[:, : end - begin]
        return scores

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """See `Ops.select`: +inf for sinks and window, then a stable descending sort."""
        rows, heads, width = scores.shape
        widest = int(counts.max()) if rows else 0
        logical = torch.full((rows, heads, widest), -1, dtype=torch.int32, device=scores.device)
        unit = torch.arange(width, device=scores.device)
        for row, (begin, end) in enumerate(
            zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
        ):
            total, count = int(num_units[row]), int(counts[row])
            always = (unit < begin) | ((unit >= end) & (unit < total))
            known = scores[row].nan_to_num(LARGEST, posinf=LARGEST, neginf=-torch.inf)
            rank = known.masked_fill(always, torch.inf)[:, :total]
            best = torch.sort(rank, dim=-1, descending=True, stable=True).indices[:, :count]
            logical[row, :, :count] = best.sort(-1).values.int()
        table = candidates.unit_table[:, None, :].expand(rows, heads, width)
        physical = table.gather(-1, logical.clamp(min=0).long())
        return Selection(logical, physical.masked_fill(logical < 0, 0).int(), counts)

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
        """See `Ops.attend`: one softmax per row and KV head."""
        rows, heads, group, _ = q.shape
        out = q.new_empty(rows, heads, group, values.shape[-1])
        lse = q.new_empty(rows, heads, group, dtype=torch.float32)
        offsets = torch.arange(unit_size, device=q.device)
        for row in range(rows):
            count, tail = int(counts[row]), int(tail_lengths[row])
            for head in range(heads):
                units = table[row, head, :count].long()
                slots = (units[:, None] * unit_size + offsets).reshape(-1)
                slots = slots[: (count - 1) * unit_size + tail]
                logits = q[row, head].float() @ keys[slots, head].float().T * scale
                lse[row, head] = logits.logsumexp(-1)
                out[row, head] = (logits.softmax(-1) @ values[slots, head].float()).to(q.dtype)
        return out, lse

    def estimate(
        self,
        q: torch.Tensor,
        index: ResidualIndex,
        candidates: Candidates,
        selection: Selection,
        scale: float,
        unit_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.estimate`: one softmax over what is not read, whatever segment it lies in."""
        rows, heads, group, _ = q.shape
        out = q.new_zeros(rows, heads, group, index.values.shape[-1])
        lse = torch.full((rows, heads, group), -torch.inf, device=q.device)
        for row, begin, end in candidate_spans(candidates):
            unread = torch.zeros(heads, len(index.table[row]) * index.segment_size).bool()
            unread[:, begin:end] = True
            for head, units in enumerate(selection.logical[row, :, : int(selection.counts[row])]):
                tokens = units.long()[:, None] * unit_size + torch.arange(unit_size)
                unread[head, tokens[tokens < unread.shape[1]]] = False
            logits, values = [], []
            for segment, record in enumerate(index.table[row].tolist()):
                if record < 0:
                    continue
                first = segment * index.segment_size
                there = unread[:, None, first : first + index.segment_size]
                keys = records.of_clusters(index, record, records.centroids(index, record))
                own = (q[row].float() @ keys.mT * scale).masked_fill(~there, -torch.inf)
                logits.append(own)
                values.append(records.cluster_values(index, record))
            if logits:
                every = torch.cat(logits, -1)  # [H, G, tokens]
                lse[row] = every.logsumexp(-1)
                weights = every.softmax(-1).nan_to_num(0.0)
                out[row] = (weights @ torch.cat(values, 1)).to(q.dtype)
        return out, lse

    def merge(
        self, out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.merge`."""
        lse = torch.logaddexp(lse_a, lse_b)
        weight_a, weight_b = (lse_a - lse).exp()[..., None], (lse_b - lse).exp()[..., None]
        return (out_a.float() * weight_a + out_b.float() * weight_b).to(out_a.dtype), lse

    def prefill(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """See `Ops.prefill`."""
        new, length, heads = q.shape[0], slots.shape[0], keys.shape[1]
        grouped = q.view(new, heads, -1, q.shape[-1]).float()
        logits = torch.einsum("thgd,lhd->hgtl", grouped, keys[slots].float()) * scale
        position = torch.arange(length, device=q.device)
        future = position[None, :] > position[length - new :, None]
        weights = logits.masked_fill(future, -torch.inf).softmax(-1)
        out = torch.einsum("hgtl,lhd->thgd", weights, values[slots].float())
        return out.reshape(new, -1, values.shape[-1]).to(q.dtype)


def unit_rows(keys: torch.Tensor, units: torch.Tensor, unit_size: int) -> torch.Tensor:
    """Rows of whole units: keys `[slots, H, D]`, units `[m]` -> `[m, unit_size, H, D]`."""
    return keys.unflatten(0, (-1, unit_size))[units]


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
        cls, q: torch.Tensor, index: ResidualIndex, row: int, begin: int, end: int
    ) -> "Clusters":
        """Of scaled queries `[H, G, D]` and the candidates [begin, end) of a row."""
        size, many = index.segment_size, index.entries
        known = [r for r in enumerate(index.table[row].tolist()) if r[1] >= 0 and r[0] * size < end]
        count = many * len(known)
        labels = torch.full((len(q), end), count)
        logits = [q.new_empty(*q.shape[:2], 0)]
        for nth, (segment, record) in enumerate(known):
            own = records.labels(index, record) + many * nth
            first = segment * size
            labels[:, first : first + size] = own[:, : end - first]
            logits.append(q @ records.centroids(index, record).mT)
        labels = labels[:, begin:]
        sizes = torch.zeros(len(q), count + 1).scatter_add(1, labels, torch.ones(labels.shape))
        return cls(torch.cat(logits, -1), labels, sizes[:, :count])

    def opened(
        self, logits: torch.Tensor, reduction: Reduction, reach: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of candidates `[H, G, n]` -> the same, -inf in clusters that stay shut, and
        `[H, G, C]`, logs of what those weigh, -inf for open ones."""
        count, sizes = self.sizes.shape[1], self.sizes.log()[:, None]
        coded = (self.labels < count)[:, None]
        others = logits.masked_fill(coded, -torch.inf)
        share = reduce_group(torch.cat((self.logits + sizes, others), -1), reduction)
        ranks = (share[:, :count] - sizes[:, 0]).nan_to_num(nan=-torch.inf)
        found = records.opened(ranks, self.sizes, reach)
        whole = (self.logits + sizes).masked_fill(found[:, None], -torch.inf)
        shut = torch.nn.functional.pad(~found, (0, 1)).gather(1, self.labels)
        return logits.masked_fill(shut[:, None], -torch.inf), whole


def candidate_spans(candidates: Candidates) -> list[tuple[int, int, int]]:
    """(row, begin, end) of every row that has candidates."""
    spans = zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
    return [(row, begin, end) for row, (begin, end) in enumerate(spans) if begin < end]


def reduce_group(scores: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Scaled scores `[H, G, u]` -> `[H, u]`: log of the max or mean softmax over the group."""
    if reduction is Reduction.MAX:
        return scores.amax(1)
    log_share = scores - scores.logsumexp(-1, keepdim=True)
    if reduction is Reduction.MAX_SOFTMAX:
        return log_share.amax(1)
    return log_share.logsumexp(1) - torch.tensor(float(scores.shape[1])).log()
