"""The ops of `sgl_sparsekv.ops.Ops`, one function body per op, float32 throughout."""

from collections.abc import Mapping

import torch

from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.summaries import CodeSummary, PageSummary, ResidualSummary
from sgl_sparsekv.types import (
    Candidates,
    Goal,
    KeptUnits,
    Ranking,
    Reduction,
    Rest,
    ScoreInputs,
    Selection,
    TokenLists,
    per_head,
)

from .allot import LARGEST, shared
from .clusters import Clusters
from .layers import ReferenceLayerOps
from .rows import candidate_spans, known_of, reduce_group, unit_rows
from .sample import sample


class ReferenceOps(ReferenceLayerOps):
    """Plain torch; any method runs here, from the formula in its own file."""

    name = "reference"
    has_segments = True
    takes_planes = False

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

    def index_residuals(
        self,
        summary: ResidualSummary,
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        skips: torch.Tensor,
        into: Mapping[str, torch.Tensor],
        records: torch.Tensor,
    ) -> None:
        """See `Ops.index_residuals`."""
        summary.write(self.index_segments, cache, slots, skips, into, records)

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
        """See `Ops.score`."""
        rows, heads, _, _ = q.shape
        assert summary.score is not None, f"{summary.name} does not rank"
        scores = q.new_full((rows, heads, candidates.unit_table.shape[1]), -torch.inf).float()
        for row, begin, end in candidate_spans(candidates):
            units = candidates.unit_table[row, begin:end].long()
            planes = fields[units].movedim(1, 0).float()  # [H, u, planes, D]
            estimate = summary.score(q[row].float(), planes) * scale
            scores[row, :, begin:end] = reduce_group(estimate, reduction, known_of(known, row))
        return scores

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
        """See `Ops.score_exact`."""
        rows, heads, _, _ = q.shape
        scores = q.new_full((rows, heads, candidates.unit_table.shape[1]), -torch.inf).float()
        for row, begin, end in candidate_spans(candidates):
            k = unit_rows(keys, candidates.unit_table[row, begin:end].long(), unit_size).float()
            logits = torch.einsum("hgd,uthd->hgut", q[row].float(), k) * scale
            scores[row, :, begin:end] = reduce_group(
                logits.logsumexp(-1), reduction, known_of(known, row)
            )
        return scores

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
        """See `Ops.score_codes`: keys of coded tokens are put together from their codes."""
        rows, heads, _, _ = q.shape
        scores = q.new_full((rows, heads, candidates.unit_table.shape[1]), -torch.inf).float()
        for row, begin, end in candidate_spans(candidates):
            slots = candidates.unit_table[row, :end].long()
            k = keys[slots].float().movedim(1, 0)  # [H, end, D]
            for segment, record in enumerate(index.table[row].tolist()):
                first = segment * index.segment_size
                if record >= 0 and first < end:
                    coded = index.decoded(record)
                    k[:, first : first + index.segment_size] = coded[:, : end - first]
            logits = q[row].float() @ k[:, begin:].mT * scale
            if reach is not None and isinstance(index, ResidualIndex):
                clusters = Clusters.of(q[row].float() * scale, index, row, (begin, end))
                own = clusters.scores(logits, reduction, int(reach[row]), known_of(known, row))
            else:
                own = reduce_group(logits, reduction, known_of(known, row))
            scores[row, :, begin:end] = own
        return scores

    def known(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        kept: KeptUnits,
        tail_lengths: torch.Tensor,
        scale: float,
        unit_size: int,
    ) -> torch.Tensor:
        """See `Ops.known`: attended, with keys for values as they are at hand."""
        table = kept.table[:, None].expand(-1, q.shape[1], -1)
        return self.attend(q, keys, keys, table, kept.counts, tail_lengths, scale, unit_size)[1]

    def sample(
        self, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor, size: int
    ) -> Ranking:
        """See `Ops.sample`."""
        return sample(self.attend, scores, inputs, coverage, size)

    def allot(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
        lowest: torch.Tensor,
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        """See `Ops.allot`."""
        out = counts.new_empty(scores.shape[:2])
        spans = zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
        for row, (begin, end) in enumerate(spans):
            ranked = scores[row, :, begin : max(begin, end)]
            always = int(num_units[row]) - ranked.shape[-1]
            room = max(0, min(int(counts[row]) - always, ranked.shape[-1]))
            rooms = torch.full((scores.shape[1],), room)
            if pooled[row]:
                rooms = shared(ranked, room)
            out[row] = always + rooms.minimum((ranked >= lowest[row, :, None]).sum(-1))
        return out

    def cover(self, scores: torch.Tensor, inputs: ScoreInputs, goal: Goal, size: int) -> Selection:
        """See `Ops.cover`: one after the other."""
        ranking = self.sample(scores, inputs, goal.coverage, size)
        assert ranking.lowest is not None
        units = (inputs.candidates, inputs.num_units)
        how = (inputs.counts, ranking.lowest, goal.pooled)
        return self.select(ranking.scores, *units, self.allot(ranking.scores, *units, *how))

    def select(
        self,
        scores: torch.Tensor,
        candidates: Candidates,
        num_units: torch.Tensor,
        counts: torch.Tensor,
    ) -> Selection:
        """See `Ops.select`: +inf for sinks and window, then a stable descending sort."""
        rows, heads, width = scores.shape
        counts = per_head(counts, heads)
        widest = int(counts.max()) if rows else 0
        logical = torch.full((rows, heads, widest), -1, dtype=torch.int32, device=scores.device)
        unit = torch.arange(width, device=scores.device)
        for row, (begin, end) in enumerate(
            zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
        ):
            total = int(num_units[row])
            always = (unit < begin) | ((unit >= end) & (unit < total))
            known = scores[row].nan_to_num(LARGEST, posinf=LARGEST, neginf=-torch.inf)
            rank = known.masked_fill(always, torch.inf)[:, :total]
            best = torch.sort(rank, dim=-1, descending=True, stable=True).indices
            for head, count in enumerate(counts[row].tolist()):
                logical[row, head, :count] = best[head, :count].sort().values.int()
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
        listed = per_head(counts, heads).tolist()
        for row in range(rows):
            tail = int(tail_lengths[row])
            for head, count in enumerate(listed[row]):
                units = table[row, head, :count].long()
                slots = (units[:, None] * unit_size + offsets).reshape(-1)
                slots = slots[: (count - 1) * unit_size + tail]
                logits = q[row, head].float() @ keys[slots, head].float().T * scale
                lse[row, head] = logits.logsumexp(-1)
                out[row, head] = (logits.softmax(-1) @ values[slots, head].float()).to(q.dtype)
        return out, lse

    def choose(self, inputs: ScoreInputs, reach: int) -> tuple[Selection, torch.Tensor]:
        """See `Ops.choose`: the three of them."""
        q, index, spans = inputs.q, inputs.index, inputs.candidates
        assert isinstance(index, ResidualIndex) and inputs.known is None
        how, within = (inputs.scale, inputs.reduction), inputs.counts * reach
        scores = self.score_codes(q, inputs.keys, index, spans, *how, None, within)
        selection = self.select(scores, spans, inputs.num_units, inputs.counts)
        return selection, self.weigh(q, index, spans, selection, *how, within, 1)

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
        """See `Ops.weigh`."""
        rows, heads, group, _ = q.shape
        segments, size, many = index.table.shape[1], index.segment_size, index.entries
        out = torch.full((rows, heads, group, segments * many), -torch.inf)
        listed = per_head(selection.counts, heads).tolist()
        for row, begin, end in candidate_spans(candidates):
            read = torch.zeros(heads, max(end, segments * size)).bool()
            for head, count in enumerate(listed[row]):
                units = selection.logical[row, head, :count].long()
                tokens = units[:, None] * unit_size + torch.arange(unit_size)
                read[head, tokens[tokens < end]] = True
            scaled = q[row].float() * scale
            logits = scaled.new_zeros(heads, group, max(end, segments * size))
            for segment, record in enumerate(index.table[row].tolist()):
                if record >= 0:
                    first = segment * size
                    logits[..., first : first + size] = scaled @ index.decoded(record).mT
            clusters = Clusters.of(scaled, index, row, (begin, end))
            opened = clusters.opened(reduction, int(reach[row]))
            found = clusters.weights(logits[..., begin:end], read[:, begin:end], opened)
            out[row, ..., clusters.places] = found
        return out

    def estimate(
        self, weights: torch.Tensor, index: ResidualIndex, out: torch.Tensor, lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.estimate`."""
        joined, joined_lse = torch.empty_like(out), torch.empty_like(lse)
        for row, records in enumerate(index.table.tolist()):
            values = out.new_zeros(out.shape[1], 0, out.shape[-1]).float()
            values = torch.cat([values, *(index.cluster_values(max(r, 0)) for r in records)], 1)
            every = torch.cat((weights[row], lse[row, ..., None]), -1)  # [H, G, C + 1]
            share = every.softmax(-1).nan_to_num(0.0)
            rest = share[..., :-1] @ values
            joined[row] = (rest + share[..., -1:] * out[row].float()).to(out.dtype)
            joined_lse[row] = every.logsumexp(-1)
        return joined, joined_lse

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
        """See `Ops.attend_all`: one after the other."""
        how = (selection.physical, selection.counts, tail_lengths, scale, unit_size)
        out, lse = self.attend(q, *cache, *how)
        return self.estimate(rest.weights, rest.index, out, lse)[0], lse

    def attend_lists(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        lists: TokenLists,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Ops.attend_lists`."""
        chosen = lists.selection
        tails = torch.ones_like(chosen.counts[:, 0])
        return self.attend(q, keys, values, chosen.physical, chosen.counts, tails, scale, 1)

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
