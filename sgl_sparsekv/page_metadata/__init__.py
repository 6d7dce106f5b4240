"""Page metadata: fields by layer and physical unit, segment records, and the life of both."""

from .check import Mismatch, find_mismatches, find_record_mismatches
from .indexing import SINKS, RowSegments, StepIndex
from .layout import KeyLayout
from .lifecycle import StepSeal
from .pool import BYTES_PER_SLOT, PageMetadata, bytes_per_unit
from .records import Cache, SegmentRecords, bytes_per_record, record_capacity, write_records

__all__ = [
    "BYTES_PER_SLOT",
    "SINKS",
    "Cache",
    "KeyLayout",
    "Mismatch",
    "PageMetadata",
    "RowSegments",
    "SegmentRecords",
    "StepIndex",
    "StepSeal",
    "bytes_per_record",
    "bytes_per_unit",
    "find_mismatches",
    "find_record_mismatches",
    "record_capacity",
    "write_records",
]
