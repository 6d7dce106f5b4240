"""Two-level bounds: what is left out cannot matter, or is said to be left out."""

from dataclasses import replace

import pytest
import torch

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.two_level import OVERSAMPLING, SEGMENT
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs, SegmentBounds

DEVICES = ("reference", "cpu")
HEADS, GROUP, DIM, UNIT = 2, 2, 32, 16
PER_SEGMENT = SEGMENT // UNIT


def scene(seed: int, lengths: tuple[int, ...], drift: float, missing: float = 0.0) -> ScoreInputs:
    """Rows over one pool; with `drift`, segments differ from one another as topics of a text do."""
    generator = torch.Generator().manual_seed(seed)
    units = [-(-n // UNIT) for n in lengths]
    order = torch.randperm(sum(units) + 1, generator=generator)[: sum(units)].int()
    table = torch.zeros(len(lengths), max(units), dtype=torch.int32)
    keys = torch.zeros((sum(units) + 1) * UNIT, HEADS, DIM)
    fields = torch.full((sum(units) + 1, HEADS, 2, DIM), torch.nan)
    records, bounds = [], torch.full((len(lengths), max(lengths) // SEGMENT), -1).int()
    ops, taken = load_ops("reference"), 0
    for row, (length, count) in enumerate(zip(lengths, units, strict=True)):
        table[row, :count] = order[taken : taken + count]
        taken += count
        topic = torch.randn(count // PER_SEGMENT + 1, HEADS, DIM, generator=generator) * drift
        own = torch.randn(count * UNIT, HEADS, DIM, generator=generator)
        own += topic.repeat_interleave(SEGMENT, 0)[: count * UNIT]
        slots = (table[row, :count, None].long() * UNIT + torch.arange(UNIT)).flatten()
        keys[slots] = own
        for segment in range(length // SEGMENT):
            if torch.rand(1, generator=generator) >= missing:
                bounds[row, segment] = len(records)
                rows = own[segment * SEGMENT : (segment + 1) * SEGMENT]
                records.append(Quest.summary.summarise(rows[None])[0])
    ops.summarise(Quest.summary, keys, fields, torch.arange(len(fields)))
    end = torch.tensor([(n - 64) // UNIT for n in lengths]).int()
    planes = torch.stack([*records, torch.full((HEADS, 2, DIM), torch.nan)])
    return ScoreInputs(
        q=torch.randn(len(lengths), HEADS, GROUP, DIM, generator=generator),
        keys=keys,
        fields={"min_max": fields},
        index=SegmentBounds(planes, bounds, SEGMENT),
        candidates=Candidates(table, torch.ones_like(end), end),
        num_units=torch.tensor(units).int(),
        counts=torch.tensor([min(count, 12) for count in units]).int(),
        scale=DIM**-0.5,
        reduction=Reduction.MAX_SOFTMAX,
        unit_size=UNIT,
    )


def chosen(device: str, method: str, inputs: ScoreInputs) -> torch.Tensor:
    """Logical units `[rows, H, n]`."""
    ops = load_ops(device)
    scores = load_method(method).score(ops, inputs)
    return ops.select(scores, inputs.candidates, inputs.num_units, inputs.counts).logical


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("drift", (0.0, 1.0, 4.0))
@pytest.mark.parametrize("missing", (0.0, 0.3))
def test_exact_mode_selects_the_pages_of_quest(device: str, drift: float, missing: float) -> None:
    """Flat Quest with the same reduction, whatever the keys and whichever bounds are missing."""
    for seed in range(20):
        inputs = scene(seed, (3000, 700, 5000, 120), drift, missing)
        flat = replace(inputs, reduction=Reduction.MAX)
        wanted = chosen(device, "quest", flat)
        assert torch.equal(chosen(device, "quest_two_level_exact", inputs), wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_most_pages_are_not_looked_at(device: str) -> None:
    """Approximate: by the budget, whatever the length. Exact: where segments differ."""
    ops, long = load_ops(device), scene(1, (20_000,), 4.0)
    seen = load_method("quest_two_level").score(ops, long).isfinite().sum(-1)
    limit = OVERSAMPLING * 12 * UNIT + SEGMENT
    assert int(seen.max()) <= limit // UNIT + PER_SEGMENT < 20_000 // UNIT // 4
    seen = load_method("quest_two_level_exact").score(ops, long).isfinite().sum(-1)
    assert int(seen.max()) < 20_000 // UNIT // 4


@pytest.mark.parametrize("method", ("quest_two_level", "quest_two_level_exact"))
def test_a_row_selects_alike_alone_and_in_a_batch(method: str) -> None:
    """However much the other rows look at."""
    inputs = scene(3, (3000, 700, 5000), 1.0, 0.2)
    together = chosen("reference", method, inputs)
    assert isinstance(inputs.index, SegmentBounds)
    for row in range(3):
        units = int(inputs.num_units[row])
        table = inputs.candidates.unit_table[row : row + 1, :units]
        begin, end = inputs.candidates.begin[row : row + 1], inputs.candidates.end[row : row + 1]
        alone = replace(
            inputs,
            q=inputs.q[row : row + 1],
            index=replace(inputs.index, table=inputs.index.table[row : row + 1]),
            candidates=Candidates(table, begin, end),
            num_units=inputs.num_units[row : row + 1],
            counts=inputs.counts[row : row + 1],
        )
        count = int(inputs.counts[row])
        wanted = chosen("reference", method, alone)[0]
        assert torch.equal(together[row, :, :count], wanted)


def test_a_page_that_is_far_better_is_found() -> None:
    """Approximate mode: the segment of a page that stands out is among the best."""
    inputs = scene(4, (20_000,), 0.0)
    page, at = 777, int(inputs.candidates.unit_table[0, 777])
    inputs.keys[at * UNIT] = 10 * inputs.q[0, :, 0]
    ops = load_ops("reference")
    ops.summarise(Quest.summary, inputs.keys, inputs.fields["min_max"], torch.tensor([at]))
    index, segment = inputs.index, page // PER_SEGMENT
    assert isinstance(index, SegmentBounds)
    members = inputs.candidates.unit_table[0, segment * PER_SEGMENT : (segment + 1) * PER_SEGMENT]
    fields = inputs.fields["min_max"][members.long()]
    low, high = fields[:, :, 0].amin(0), fields[:, :, 1].amax(0)
    index.planes[int(index.table[0, segment])] = torch.stack((low, high), 1)
    assert bool((chosen("reference", "quest_two_level", inputs) == page).any(-1).all())
