"""Page metadata: fields by layer and physical unit, and the life of a unit."""

from .check import Mismatch, find_mismatches
from .lifecycle import StepSeal
from .pool import PageMetadata

__all__ = ["Mismatch", "PageMetadata", "StepSeal", "find_mismatches"]
