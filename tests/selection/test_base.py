"""What a device lacks for a method is named; what is never scored says so."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.base import SummaryMethod
from sgl_sparsekv.selection.quest import Quest

INDEX = "index_segments/score_codes"


def device(known: set[str] | None, has_segments: bool, takes_planes: bool = False) -> Any:
    return SimpleNamespace(
        summaries=lambda: known, has_segments=has_segments, takes_planes=takes_planes
    )


@pytest.mark.parametrize(
    ("method", "known", "has_segments", "missing"),
    [
        ("quest", None, False, None),
        ("quest", {"min_max"}, False, None),
        ("quest", {"mean_std"}, True, "summarise/score[min_max]"),
        ("shadowkv", {"landmark"}, True, "summarise/score[misfit]"),
        ("shadowkv", {"landmark", "misfit"}, False, None),
        ("quest_two_level", {"min_max"}, False, None),
        ("clusterkv", None, True, None),
        ("clusterkv", None, False, INDEX),
        ("pqcache", set(), False, INDEX),
        ("streaming", set(), False, None),
    ],
)
def test_an_op_that_a_device_lacks_is_named(
    method: str, known: set[str] | None, has_segments: bool, missing: str | None
) -> None:
    """`known` None: any summary can be computed; only codes need segments of the device."""
    assert load_method(method).missing_op(device(known, has_segments)) == missing


def test_kernels_that_a_summary_brings_are_taken_or_not() -> None:
    for takes, missing in ((True, None), (False, "summarise/score[min_max_int8]")):
        where = device({"min_max"}, True, takes)
        assert load_method("quest_int8").missing_op(where) == missing
    assert load_method("quest_int8").missing_op(device(None, True)) is None
    plain = device({"mean_std"}, True, takes_planes=True)
    assert load_method("quest").missing_op(plain) == "summarise/score[min_max]"


def test_a_method_of_one_summary_reads_that_one_and_no_other() -> None:
    class Own(SummaryMethod):
        name = "own"
        summary: ClassVar = Quest.summary

    assert Own.summaries == (Quest.summary,)


def test_full_is_never_scored() -> None:
    nothing: Any = None
    with pytest.raises(AssertionError, match=r"^full selects everything and is never scored$"):
        load_method("full").score(nothing, nothing)


def test_mean_and_spread_are_told_apart() -> None:
    """Units of equal keys: the estimate is the product with their mean and nothing more."""
    method = load_method("mean_std")
    keys = torch.randn(5, 1, 2, 8).expand(5, 16, 2, 8)
    (summary,) = method.summaries
    planes, q = summary.summarise(keys), torch.randn(2, 3, 8)
    assert planes.shape == (5, 2, 2, 8) and planes.dtype == keys.dtype
    assert summary.summarise(keys.bfloat16()).dtype == torch.bfloat16
    assert summary.score is not None
    estimate = summary.score(q, planes.movedim(1, 0))
    torch.testing.assert_close(estimate, torch.einsum("hgd,uhd->hgu", q, keys[:, 0]))
