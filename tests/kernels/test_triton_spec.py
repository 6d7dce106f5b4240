"""Numbers of methods that kernels may not import: they are the methods' own."""

from dataclasses import replace

from sgl_sparsekv.kernels.triton import spec
from sgl_sparsekv.kernels.triton.catalogue import DEFAULT_RECORDS

from sgl_sparsekv.segments.landmarks import CHUNK
from sgl_sparsekv.selection import IndexOptions, load_method, two_level
from sgl_sparsekv.selection.shadowkv import OUTLIER_SHARE


def test_numbers_are_those_of_the_methods() -> None:
    assert (spec.CHUNK, spec.OUTLIER_SHARE) == (CHUNK, OUTLIER_SHARE)
    levels = (two_level.SEGMENT, two_level.OVERSAMPLING, two_level.MARGIN)
    assert levels == (spec.SEGMENT, spec.OVERSAMPLING, spec.MARGIN)
    assert two_level.BOUNDS.name == spec.SEGMENT_BOUNDS


def test_records_of_the_report_are_those_by_default() -> None:
    for method, held in DEFAULT_RECORDS.items():
        kept = load_method(method).segments(IndexOptions())
        assert replace(kept, build=held.build) == held
