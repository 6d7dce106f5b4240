"""Landmarks and misfits of chunks, and that outliers come first within their share."""

from typing import Any

import pytest
import torch

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.shadowkv import (
    ALWAYS,
    LANDMARK,
    MISFIT,
    OUTLIER_SHARE,
    chunk_means,
    mean_product,
    misfits,
)
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs, Selection

HEADS, DIM, UNITS = 2, 4, 40
KEYS = torch.randn(6, 8, HEADS, DIM, generator=torch.Generator().manual_seed(3))


def test_a_landmark_is_the_mean_of_its_chunk() -> None:
    means = chunk_means(KEYS)
    assert means.shape == (6, HEADS, 1, DIM)
    torch.testing.assert_close(means[:, :, 0], KEYS.mean(1))
    q = torch.randn(HEADS, 3, DIM)
    products = mean_product(q, means.movedim(1, 0))
    torch.testing.assert_close(products, torch.einsum("hgd,uhd->hgu", q, KEYS.mean(1)))


def test_a_misfit_is_what_the_worst_cosine_lacks_to_one() -> None:
    """0 where all keys of a chunk are alike, 2 where one points away."""
    cosines = torch.cosine_similarity(KEYS, KEYS.mean(1, keepdim=True), -1)
    found = misfits(KEYS)
    assert found.shape == (6, HEADS, 1, 1)
    torch.testing.assert_close(found[..., 0, 0], 1 - cosines.amin(1))
    alike = misfits(KEYS[:, :1].expand(-1, 8, -1, -1))
    torch.testing.assert_close(alike, torch.zeros_like(alike), atol=1e-5, rtol=0)
    assert misfits(KEYS.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("summarise", (chunk_means, misfits))
def test_what_is_no_finite_number_counts_as_zero(summarise: Any, value: float) -> None:
    broken, zero = KEYS.clone(), KEYS.clone()
    broken[2, 5, 1, 3], zero[2, 5, 1, 3] = value, 0.0
    assert torch.equal(summarise(broken), summarise(zero))


class Device:
    """Scores every candidate 0 and notes which units were chosen as outliers."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def score(self, summary: Any, q: Any, field: Any, candidates: Candidates, *_: Any) -> Any:
        assert summary is LANDMARK
        table = candidates.unit_table
        return torch.zeros(len(table), HEADS, table.shape[1], device=table.device)

    def select(self, scores: Any, candidates: Any, num_units: Any, counts: Any) -> Selection:
        assert scores.device == num_units.device == counts.device
        if counts.device.type == "meta":
            chosen = torch.zeros(len(counts), HEADS, 5, device="meta", dtype=torch.int32)
            return Selection(chosen, chosen, counts)
        self.counts = counts.tolist()
        unit = torch.arange(UNITS)
        outside = (unit < candidates.begin[:, None]) | (unit >= candidates.end[:, None])
        assert torch.equal(scores.isneginf(), outside[:, None].expand(-1, HEADS, -1))
        return load_ops("reference").select(scores, candidates, num_units, counts)


def inputs_of(
    counts: list[int], misfit: torch.Tensor, device: str = "cpu", begin: int = 2
) -> ScoreInputs:
    """Rows of 40 chunks: 2 of sinks, 4 of window and tail; unit `i` lies at `i + 3`."""
    rows = len(counts)
    table = (torch.arange(UNITS) + 3).int().expand(rows, -1)
    fields = torch.zeros(UNITS + 3, HEADS, 1, 1)
    fields[3:, :, 0, 0] = misfit[:, None]
    row = [one.to(device) for one in (torch.full((rows,), n).int() for n in (begin, 36, UNITS))]
    return ScoreInputs(
        q=torch.zeros(rows, HEADS, 1, DIM, device=device),
        keys=torch.zeros(0, device=device),
        fields={LANDMARK.name: fields.to(device), MISFIT.name: fields.to(device)},
        index=None,
        candidates=Candidates(table.to(device), row[0], row[1]),
        num_units=row[2],
        counts=torch.tensor(counts, dtype=torch.int32, device=device),
        scale=1.0,
        reduction=Reduction.MAX_SOFTMAX,
        unit_size=8,
    )


def test_outliers_take_their_share_of_the_budget() -> None:
    """The worst 4 of 30 chunks, and of 8 what is left beside sinks and window; never below none."""
    misfit = torch.zeros(UNITS)
    misfit[[0, 39]] = 9.0  # sinks and tail are kept anyway
    misfit[[20, 7, 30, 11, 12]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    device: Any = Device()
    scores = load_method("shadowkv").score(device, inputs_of([30, 8, 6], misfit))
    quota = int(30 * OUTLIER_SHARE)
    assert device.counts == [6 + quota, 6 + 1, 6] and quota == 4
    always = [0, 1, 36, 37, 38, 39]
    for row, outliers in enumerate(([20, 7, 30, 11], [20], [])):
        for head in range(HEADS):
            first = (scores[row, head] == ALWAYS).nonzero().flatten().tolist()
            assert first == sorted([*always, *outliers])
            others = scores[row, head][scores[row, head] != ALWAYS]
            assert not others.any(), "the others keep what the device scored"


def test_outliers_leave_sinks_and_window_their_place() -> None:
    """Their share of 21 chunks is 3; 20 are always kept, so one is left."""
    misfit, device = torch.arange(float(UNITS)), Device()
    ops: Any = device
    load_method("shadowkv").score(ops, inputs_of([21, 20], misfit, begin=16))
    assert device.counts == [21, 20]


def test_everything_is_made_where_the_inputs_lie() -> None:
    device: Any = Device()
    scores = load_method("shadowkv").score(device, inputs_of([30, 8], torch.zeros(UNITS), "meta"))
    assert scores.device.type == "meta" and scores.shape == (2, HEADS, UNITS)


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_streaming_scores_candidates_by_their_place(device: str) -> None:
    nothing: Any = None
    scores = load_method("streaming").score(nothing, inputs_of([8, 8], torch.zeros(UNITS), device))
    assert scores.device.type == device and scores.dtype == torch.float32
    assert scores.shape == (2, HEADS, UNITS) and scores.is_contiguous()
    if device == "cpu":
        wanted = torch.full((UNITS,), -torch.inf)
        wanted[2:36] = torch.arange(2.0, 36.0)
        assert torch.equal(scores, wanted.expand(2, HEADS, -1))
