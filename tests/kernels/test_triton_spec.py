"""Numbers of methods that kernels may not import: they are the methods' own."""

from dataclasses import replace

import pytest
from sgl_sparsekv.kernels.triton import spec
from sgl_sparsekv.kernels.triton.catalogue import DEFAULT_RECORDS

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.segments.landmarks import CHUNK
from sgl_sparsekv.selection import IndexOptions, load_method, quest_int8, two_level
from sgl_sparsekv.selection.shadowkv import OUTLIER_SHARE


def test_numbers_are_those_of_the_methods() -> None:
    assert (spec.CHUNK, spec.OUTLIER_SHARE) == (CHUNK, OUTLIER_SHARE)
    levels = (two_level.SEGMENT, two_level.OVERSAMPLING, two_level.MARGIN)
    assert levels == (spec.SEGMENT, spec.OVERSAMPLING, spec.MARGIN)
    assert two_level.BOUNDS.name == spec.SEGMENT_BOUNDS
    int8 = (quest_int8.MOST, quest_int8.INVERSE, quest_int8.LEAST_EXPONENT)
    assert int8 == (spec.INT8_MOST, spec.INT8_INVERSE, spec.INT8_LEAST_EXPONENT)
    assert spec.INT8_SPARE == quest_int8.SPARE


def test_periods_are_no_longer_than_a_request_may_ask_for() -> None:
    most = spec.MOST_EVERY
    assert RequestOptions(reselect_every=most).reselect_every == most
    with pytest.raises(ValueError, match=f"reselect_every must be .*, got {most + 1}"):
        RequestOptions(reselect_every=most + 1)


def test_records_of_the_report_are_those_by_default() -> None:
    for method, held in DEFAULT_RECORDS.items():
        kept = load_method(method).segments(IndexOptions())
        assert replace(kept, build=held.build) == held
