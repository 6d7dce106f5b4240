"""A lower bound of the attention mass that a selection read, from bounds of what it left out.

The mass that was read is exp(r) / (exp(r) + exp(u)): r is the log-sum-exp of the logits of what was
read, u that of what was not. r is computed from its keys, u is replaced by an upper bound: that of
every unit (`SelectionMethod.ceiling`), summed. All of it is float64, and what rounding may have
taken is given back (`outward`), so the bound holds for the keys as they lie in the pool.
"""

import torch

from ..segment_records import ResidualIndex, SegmentIndex
from ..summaries import PageSummary
from ..types import ScoreInputs, Selection

ROUNDING = 2.0**-32
"""Of the terms of a sum, more than float64 loses of one with fewer than a million."""


def outward(bound: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """A float64 upper bound that rounding cannot have taken below its value.

    Args:
        bound: `[...]`, as computed.
        terms: `[...]`, at least the sum of the absolute values that were added up to it.
    """
    return bound + ROUNDING * (terms + bound.abs() + 1)


def unit_ceilings(inputs: ScoreInputs, summary: PageSummary) -> torch.Tensor:
    """See `SelectionMethod.ceiling`, by a page summary that has one."""
    assert summary.ceiling is not None
    candidates, fields = inputs.candidates, inputs.fields[summary.name]
    out = _nothing(inputs)
    spans = zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
    for row, (begin, end) in enumerate(spans):
        planes = fields[candidates.unit_table[row, begin:end].long()].movedim(1, 0)
        q = inputs.q[row].double() * inputs.scale
        out[row, :, :, begin:end] = summary.ceiling(q, planes, inputs.unit_size)
    return out


def coded_ceilings(inputs: ScoreInputs, index: SegmentIndex | ResidualIndex) -> torch.Tensor:
    """See `SelectionMethod.ceiling`, by codes of tokens.

    A token's logit is that of what its codes stand for, and at most the sum over its sub-vectors of
    |q| times how far any token of its group strays. How far is computed from the keys, as records
    do not hold it. A token without codes is its own bound.
    """
    candidates, parts = inputs.candidates, index.codebooks.shape[2]
    out, size = _nothing(inputs), index.segment_size
    spans = zip(candidates.begin.tolist(), candidates.end.tolist(), strict=True)
    for row, (begin, end) in enumerate(spans):
        slots = candidates.unit_table[row, : max(begin, end)].long()
        keys = inputs.keys[slots].movedim(1, 0).double()
        stray = keys.new_zeros(keys.shape[0], parts, keys.shape[1])
        for nth, record in enumerate(index.table[row].tolist()):
            span = slice(nth * size, min((nth + 1) * size, keys.shape[1]))
            if record >= 0 and span.start < span.stop:
                coded = index.decoded(record)[:, : span.stop - span.start].double()
                groups = index.groups(record)[..., : span.stop - span.start].long()
                stray[..., span] = _strays(keys[:, span] - coded, groups, index.entries)
                keys[:, span] = coded
        q = inputs.q[row].double() * inputs.scale
        lengths = q.unflatten(-1, (parts, -1)).norm(dim=-1)
        terms = q.abs() @ keys.abs().mT + lengths @ stray
        out[row, :, :, begin:end] = outward(q @ keys.mT + lengths @ stray, terms)[..., begin:end]
    return out


def _strays(error: torch.Tensor, groups: torch.Tensor, entries: int) -> torch.Tensor:
    """Longest error in a token's group: `[H, S, D]`, `[H, m, S]` -> `[H, m, S]`."""
    lengths = error.unflatten(-1, (groups.shape[1], -1)).norm(dim=-1).mT
    longest = lengths.new_zeros(*groups.shape[:2], entries)
    return longest.scatter_reduce(2, groups, lengths, "amax").gather(2, groups)


def _nothing(inputs: ScoreInputs) -> torch.Tensor:
    """A bound of what there is none of: -inf `[rows, H, G, U]`."""
    shape = (*inputs.q.shape[:3], inputs.candidates.unit_table.shape[1])
    return torch.full(shape, -torch.inf, dtype=torch.float64, device=inputs.q.device)


def mass_floor(
    inputs: ScoreInputs, selection: Selection, tails: torch.Tensor, ceiling: torch.Tensor
) -> torch.Tensor:
    """Lower bound of the attention mass that a selection holds, per query head.

    Args:
        inputs: what the selection was made from.
        selection: what was read.
        tails: int32 `[rows]`, tokens of the last unit that exist.
        ceiling: float64 `[rows, H, G, U]`, see `SelectionMethod.ceiling`.

    Returns:
        float64 `[rows, H, G]`; 0 where something is not finite.
    """
    unread = ceiling.masked_fill(read_units(selection, ceiling.shape[-1])[:, :, None], -torch.inf)
    least = lse_of_read(inputs, selection, tails)
    mass = torch.sigmoid(least - outward(unread.logsumexp(-1), ceiling.new_zeros(())))
    return (mass * (1 - ROUNDING)).nan_to_num(0.0).where(unread.isfinite().any(-1), _whole(unread))


def _whole(unread: torch.Tensor) -> torch.Tensor:
    """1 where nothing is left out; 0 where a ceiling is not a number, or has none."""
    return (unread == -torch.inf).all(-1).to(unread.dtype)


def read_units(selection: Selection, width: int) -> torch.Tensor:
    """Which units were read: bool `[rows, H, width]`."""
    logical = selection.logical.long()
    marks = torch.zeros(*logical.shape[:2], width + 1, dtype=torch.bool, device=logical.device)
    return marks.scatter_(-1, logical.masked_fill(logical < 0, width), True)[..., :width]


def lse_of_read(inputs: ScoreInputs, selection: Selection, tails: torch.Tensor) -> torch.Tensor:
    """A lower bound of the log-sum-exp of what was read: float64 `[rows, H, G]`."""
    size = inputs.unit_size
    q = inputs.q.double() * inputs.scale
    out = q.new_empty(q.shape[:3])
    offsets = torch.arange(size, device=q.device)
    for row, counts in enumerate(selection.counts.tolist()):
        for head, count in enumerate(counts):
            slots = selection.physical[row, head, :count].long()[:, None] * size + offsets
            slots = slots.flatten()[: (count - 1) * size + int(tails[row])]
            keys = inputs.keys[slots, head].double()
            logits = q[row, head] @ keys.mT
            terms = q[row, head].abs() @ keys.abs().mT
            out[row, head] = -outward(-logits.logsumexp(-1), terms.amax(-1))
    return out
