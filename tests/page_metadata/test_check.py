"""What is told of metadata that is not what its keys give, and what is not."""

from dataclasses import replace

import pytest
import torch

from sgl_sparsekv.geometry import Geometry
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata import PageMetadata
from sgl_sparsekv.page_metadata.check import Mismatch, find_mismatches
from sgl_sparsekv.page_metadata.layout import KeyLayout
from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.shadowkv import LANDMARK, MISFIT
from sgl_sparsekv.summaries import PageSummary

OPS, UNITS, HEADS, DIM = load_ops("reference"), 6, 2, 4
ALL = torch.arange(UNITS)


def metadata_of(*summaries: PageSummary) -> tuple[PageMetadata, torch.Tensor]:
    """All units sealed in layer 1 of 2, and their keys."""
    layout = KeyLayout(2, HEADS, DIM, torch.float32)
    metadata = PageMetadata(Geometry(16, 16), summaries, layout, UNITS * 16, "cpu")
    keys = torch.randn(UNITS * 16, HEADS, DIM)
    for summary in summaries:
        units = metadata.geometry.finer(ALL, summary.tokens)
        OPS.summarise(summary, keys, metadata.fields(summary.name, 1), units)
    metadata.seal(ALL)
    return metadata, keys


def test_fields_that_are_what_their_keys_give_are_no_mismatch() -> None:
    metadata, keys = metadata_of(Quest.summary, MeanStd.summary, LANDMARK, MISFIT)
    assert find_mismatches(metadata, OPS, 1, keys, ALL) == []
    assert find_mismatches(metadata, OPS, 1, keys, ALL[:0]) == []


def test_a_copy_of_a_key_must_be_equal_and_says_how_far_it_is_off() -> None:
    """The worst of a unit's numbers, once for each unit, wherever it was asked."""
    metadata, keys = metadata_of(MeanStd.summary, Quest.summary)
    field = metadata.fields("min_max", 1)
    field[4, 1, 0, 2] -= 0.5
    field[4, 0, 1, 0] += 0.25
    field[2, 0, 0, 0] += 1e-6
    found = find_mismatches(metadata, OPS, 1, keys, torch.tensor([4, 0, 2, 4]))
    assert [(one.summary, one.layer, one.unit) for one in found] == [
        ("min_max", 1, 2),
        ("min_max", 1, 4),
    ]
    assert found[0].worst == pytest.approx(1e-6, rel=0.2) and found[1].worst == 0.5
    assert find_mismatches(metadata, OPS, 1, keys, torch.tensor([0, 1, 3, 5])) == []


def test_each_summary_tells_its_own() -> None:
    metadata, keys = metadata_of(Quest.summary, MeanStd.summary)
    metadata.fields("min_max", 1)[2] += 1
    metadata.fields("mean_std", 1)[5] += 1
    found = find_mismatches(metadata, OPS, 1, keys, ALL)
    assert [(one.summary, one.unit) for one in found] == [("min_max", 2), ("mean_std", 5)]


def test_units_without_a_stamp_may_hold_anything() -> None:
    metadata, keys = metadata_of(Quest.summary)
    metadata.fields("min_max", 1).fill_(9.0)
    metadata.sealed[ALL != 3] = False
    assert [one.unit for one in find_mismatches(metadata, OPS, 1, keys, ALL)] == [3]
    metadata.sealed[3] = False
    assert find_mismatches(metadata, OPS, 1, keys, ALL) == []


def test_smaller_units_are_compared_in_their_own_number() -> None:
    """Two chunks of 8 tokens in a unit of 16."""
    metadata, keys = metadata_of(LANDMARK)
    metadata.fields("landmark", 1)[7, 0, 0, 0] += 1
    assert [one.unit for one in find_mismatches(metadata, OPS, 1, keys, ALL)] == [7]


def test_a_statistic_may_differ_by_its_ulps_of_the_largest_number_beside_it() -> None:
    metadata, keys = metadata_of(MeanStd.summary)
    field = metadata.fields("mean_std", 1)
    allowed = float(field[2, 1, 0].abs().amax()) * 4 * torch.finfo(torch.float32).eps
    kept = field[2, 1, 0].clone()
    field[2, 1, 0, 0] = kept[0] + 0.75 * allowed
    assert find_mismatches(metadata, OPS, 1, keys, ALL) == []
    field[2, 1, 0, 0] = kept[0] + 2.25 * allowed
    (found,) = find_mismatches(metadata, OPS, 1, keys, ALL)
    assert 0.9 * allowed < found.worst < 1.6 * allowed, "what is beyond it"
    exact, _ = metadata_of(replace(MeanStd.summary, ulps=0))
    exact.fields("mean_std", 1).copy_(field)
    assert len(find_mismatches(exact, OPS, 1, keys, ALL)) == 1


@pytest.mark.parametrize("summary", (Quest.summary, MeanStd.summary))
def test_what_is_no_number_equals_only_its_like(summary: PageSummary) -> None:
    metadata, keys = metadata_of(summary)
    field, whole = metadata.fields(summary.name, 1), keys.clone()
    field[3, 0, 0, 1] = torch.nan
    assert [one.unit for one in find_mismatches(metadata, OPS, 1, keys, ALL)] == [3]
    keys[3 * 16] = torch.nan
    field[3] = torch.nan
    assert find_mismatches(metadata, OPS, 1, keys, ALL) == []
    field[3] = 1.0
    assert [one.unit for one in find_mismatches(metadata, OPS, 1, keys, ALL)] == [3]
    assert [one.unit for one in find_mismatches(metadata, OPS, 1, whole, ALL)] == [3]


def test_a_mismatch_is_told_in_one_line() -> None:
    told = "min_max of layer 1, unit or record 3, differs from its keys by 0.5"
    assert str(Mismatch("min_max", 1, 3, 0.5)) == told
