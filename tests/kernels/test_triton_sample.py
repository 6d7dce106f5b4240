"""A sample of keys tells the Triton kernels how much to read, as it tells the reference."""

from dataclasses import replace

import pytest
import torch
from sgl_sparsekv.kernels.reference import sample as reference
from sgl_sparsekv.kernels.triton import cover_buffers, spec
from sgl_sparsekv.kernels.triton.cover_ops import covering, known
from test_cpu_sample import scene
from triton_kit import DEVICE, REFERENCE, moved

from sgl_sparsekv.selection import mean_std, quest, sampling
from sgl_sparsekv.types import KeptUnits, ScoreInputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
ASKED = torch.tensor([0.9, 0.5, 0.99])
KINDS = [(torch.bfloat16, 1, 1, 64), (torch.float32, 16, 4, 128), (torch.float16, 3, 7, 80)]
"""Element type, tokens of a unit, query heads of a KV head, channels."""


def on_device(inputs: ScoreInputs) -> ScoreInputs:
    """What a kernel is given."""
    return replace(inputs, **{name: moved(part, DEVICE) for name, part in vars(inputs).items()})


def check(scores: torch.Tensor, inputs: ScoreInputs, size: int) -> None:
    """The threshold, and the counts but for scores that lie at it."""
    asked = ASKED[: len(scores)]
    want = REFERENCE.sample(scores, inputs, asked, size)
    got = covering(scores.to(DEVICE), on_device(inputs), asked.to(DEVICE), size)
    finite = scores.nan_to_num(-torch.inf, posinf=-torch.inf)
    moved_by = want.scores - finite
    shift = moved_by.masked_fill(finite == -torch.inf, -torch.inf).amax(-1)
    lowest = got.lowest.cpu() + shift.masked_fill(shift == -torch.inf, 0)
    torch.testing.assert_close(lowest, want.lowest, atol=2e-3, rtol=1e-3)
    units = (inputs.candidates, inputs.num_units, inputs.counts)
    nobody = torch.zeros(len(scores), dtype=torch.int32)
    most, least = (
        REFERENCE.allot(want.scores, *units, want.lowest + off, nobody) for off in (-4e-3, 4e-3)
    )
    chosen = got.chosen.cpu()
    assert ((least <= chosen) & (chosen <= most)).all()


@pytest.mark.parametrize(("dtype", "unit", "group", "dim"), KINDS)
@pytest.mark.parametrize("chunk", [1024, 64])
def test_it_is_as_the_reference_says(
    dtype: torch.dtype, unit: int, group: int, dim: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one piece and of many; with room for all that is chosen, and with too little."""
    monkeypatch.setattr(cover_buffers, "COVER_CHUNK", chunk)
    for seed in range(0, 14, 2 if chunk > 64 else 5):
        scores, inputs = scene(seed, dtype, unit, group, dim)
        check(scores, inputs, 16)
        check(scores, replace(inputs, counts=inputs.counts - 4 - 3 * seed), 16)


def test_any_number_of_programs_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes over all chunks of a row, several, and one for each."""
    monkeypatch.setattr(cover_buffers, "COVER_CHUNK", 64)
    found = []
    for programs in (1, 3, 100):
        monkeypatch.setattr(cover_buffers.SampleBuffers, "programs", lambda *_, n=programs: n)
        for seed in (0, 5):
            scores, inputs = scene(seed, torch.float32, 16, 3, 64)
            got = covering(scores.to(DEVICE), on_device(inputs), ASKED.to(DEVICE), 16)
            found.append((got.lowest.cpu(), got.chosen.cpu()))
    for got, want in zip(found[2:], found[:2] * 2, strict=True):
        assert all(map(torch.equal, got, want))


def test_as_many_programs_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cover_buffers, "processors", lambda: 100)
    held = cover_buffers.allocate_sample(4, 8, 1, 9 * 1024 + 1, 16, torch.device("cpu"))
    assert held.chunks == 10 and [held.programs(rows) for rows in (1, 8, 1000)] == [10, 6, 1]


def test_samples_of_tokens_are_larger() -> None:
    """As many as 16 units of 8 tokens would have."""
    scores, inputs = scene(6, torch.float32, 1, 2, 64)
    check(scores, inputs, 128)


def test_everything_nothing_and_rows_without_candidates() -> None:
    scores, inputs = scene(2, torch.float32, 1, 2, 64)
    whole = replace(inputs, known=inputs.known + 20)
    always = inputs.num_units - (inputs.candidates.end - inputs.candidates.begin)
    got = covering(scores.to(DEVICE), on_device(whole), ASKED.to(DEVICE), 16)
    assert (got.lowest == torch.inf).all() and (got.chosen.cpu() == always[:, None]).all()
    none = replace(inputs, candidates=replace(inputs.candidates, begin=inputs.candidates.end))
    empty = torch.full_like(scores, -torch.inf)
    got = covering(empty.to(DEVICE), on_device(none), ASKED.to(DEVICE), 16)
    assert (got.chosen.cpu() == inputs.num_units[:, None]).all()


def test_scores_that_are_no_numbers_are_never_drawn() -> None:
    scores, inputs = scene(6, torch.float32, 1, 2, 64)
    scores[:, :, 10], scores[:, :, 11] = torch.nan, torch.inf
    keys = inputs.keys.clone()
    keys[inputs.candidates.unit_table[0, 10:12].long()] = torch.nan
    check(scores, replace(inputs, keys=keys), 128)


def test_a_row_is_sampled_alike_alone() -> None:
    scores, inputs = scene(2, torch.bfloat16, 16, 4, 128)
    both = covering(scores.to(DEVICE), on_device(inputs), ASKED.to(DEVICE), 16)
    there = torch.tensor([1])
    alone = covering(
        scores[1:2].to(DEVICE), on_device(inputs.take(there)), ASKED[1:2].to(DEVICE), 16
    )
    assert torch.equal(alone.lowest[0], both.lowest[1])
    assert torch.equal(alone.chosen[0], both.chosen[1])


@pytest.mark.parametrize(("dtype", "unit", "group", "dim"), KINDS)
def test_what_is_read_in_any_case_is_known(
    dtype: torch.dtype, unit: int, group: int, dim: int
) -> None:
    for seed in range(0, 14, 3):
        _, inputs = scene(seed, dtype, unit, group, dim)
        kept = KeptUnits.of(inputs.candidates, inputs.num_units)
        kept = replace(kept, counts=kept.counts.clamp(min=1))
        keys, tails = inputs.keys.clone(), torch.full_like(kept.counts, 1 + seed % unit)
        listed = [set(row[:n].tolist()) for row, n in zip(kept.table, kept.counts, strict=True)]
        unread = [u for u in range(len(keys) // unit) if u not in set.union(*listed)]
        keys.view(-1, unit, *keys.shape[1:])[unread] = torch.nan
        there = KeptUnits(*(moved(part, DEVICE) for part in vars(kept).values()))
        got = known(
            inputs.q.to(DEVICE), keys.to(DEVICE), there, tails.to(DEVICE), inputs.scale, unit
        ).cpu()
        want = REFERENCE.known(inputs.q, keys, kept, tails, inputs.scale, unit)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_kernels_sample_as_the_methods_do() -> None:
    """The numbers that both have, written down twice."""
    assert (spec.SAMPLE_UNITS, spec.SAMPLE_TOKENS) == (sampling.LEAST_UNITS, sampling.LEAST_TOKENS)
    assert (spec.SAMPLE_POWER, spec.SAMPLE_BLOCK) == (reference.POWER, reference.BLOCK)
    assert (spec.BOX_REACH, spec.SPREAD_REACH) == (quest.REACH, mean_std.REACH)
