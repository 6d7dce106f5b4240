"""Where shares of attention are asked for, each method scores for them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.mean_std import SPREAD, MeanStd
from sgl_sparsekv.selection.quest import Quest, min_max, upper_bound

KNOWN = object()
TAKEN = ("q", "candidates", "scale", "reduction", "known")


class Asked:
    """A device that keeps what it was asked."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()

    def score(self, *arguments: Any) -> None:
        self.arguments = arguments

    score_exact = score_codes = score


def inputs(known: Any) -> Any:
    fields = {"min_max": "bounds", "mean_std": "moments"}
    index = SegmentIndex(*torch.zeros(3, 1, 1, 1, 1))
    parts = {name: name for name in (*TAKEN[:-1], "keys", "unit_size")}
    return SimpleNamespace(**parts, known=known, fields=fields, index=index)


@pytest.mark.parametrize(("kind", "field"), [(Quest, "bounds"), (MeanStd, "moments")])
def test_a_page_summary_is_scored_for_ranks_or_for_shares(kind: Any, field: str) -> None:
    for known, summary in ((None, kind.summary), (KNOWN, kind.shares)):
        device: Any = Asked()
        kind().score(device, inputs(known))
        assert device.arguments[0] is summary and device.arguments[-1] is known
        assert device.arguments[1:-1] == ("q", field, "candidates", "scale", "reduction")


@pytest.mark.parametrize("name", ["oracle", "clusterkv", "pqcache"])
def test_what_is_read_in_any_case_is_handed_on(name: str) -> None:
    for known in (None, KNOWN):
        device: Any = Asked()
        load_method(name).score(device, inputs(known))
        assert device.arguments[-1] is known and device.arguments[:2] == ("q", "keys")


def test_a_share_is_scored_part_of_the_way_from_the_middle_of_the_box() -> None:
    """At its end the bound, at its beginning the product with the middle; straight between."""
    keys, q = torch.randn(3, 16, 2, 8), torch.randn(2, 5, 8)
    planes = min_max(keys).movedim(1, 0)
    middle = q @ planes.mean(-2).mT
    bound = upper_bound(q, planes)
    assert Quest.shares.score is not None and Quest.shares.reach == 0.25
    torch.testing.assert_close(Quest.shares.score(q, planes), middle + 0.25 * (bound - middle))


def test_a_share_is_scored_beyond_the_expected_best_key() -> None:
    planes, q = torch.rand(2, 3, 2, 8), torch.randn(2, 5, 8)
    mean, std = planes.unbind(-2)
    deviation = (q.square() @ std.square().mT).sqrt()
    for summary, reach in ((MeanStd.summary, 1.0), (MeanStd.shares, 1.5)):
        assert summary.score is not None and summary.reach == reach
        expected = q @ mean.mT + reach * SPREAD * deviation
        torch.testing.assert_close(summary.score(q, planes), expected)
