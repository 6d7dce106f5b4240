"""What indexes segments for the methods that a server offers."""

from collections.abc import Iterator

from ..config import ServerOptions
from ..ops import Ops
from ..page_metadata import PageMetadata, StepIndex
from ..selection import load_method


class SegmentIndexes:
    """One `StepIndex` per segment summary: methods of one summary share its records, so what a step
    indexes is decided once for all of them.

    Attributes:
        readers: served methods that read segment records, by the name of their summary.
        rest: what indexes segments for estimates, or None.
    """

    def __init__(self, metadata: PageMetadata, ops: Ops, options: ServerOptions) -> None:
        self.readers: dict[str, list[str]] = {}
        for method in options.methods:
            summary = load_method(method).segments(options.index)
            if summary is not None:
                self.readers.setdefault(summary.name, []).append(method)
        residuals = options.residuals
        if residuals is not None:
            self.readers.setdefault(residuals.name, [])
        self._indexes = {
            name: StepIndex(metadata.records[name], metadata.geometry, ops, metadata.last_layer)
            for name in self.readers
        }
        self.rest = self._indexes[residuals.name] if residuals is not None else None
        self._summary = {m: name for name, methods in self.readers.items() for m in methods}

    def __bool__(self) -> bool:
        return bool(self._indexes)

    def __iter__(self) -> Iterator[StepIndex]:
        return iter(self._indexes.values())

    def groups(self) -> Iterator[tuple[list[str], StepIndex]]:
        """Methods that share records, and what indexes these."""
        return ((methods, self._indexes[name]) for name, methods in self.readers.items())

    def of(self, method: str) -> StepIndex:
        """What indexes segments for a method."""
        return self._indexes[self._summary[method]]
