"""LongBench: questions about real documents, from the user's files."""

from .synthetic import write_synthetic
from .task import LongBenchTask

__all__ = ["LongBenchTask", "write_synthetic"]
