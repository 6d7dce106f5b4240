"""Which tokens each decode step of each request read, collected from a server's trace."""

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..serving.subscribe import TraceCollector
from ..serving.trace import SelectionRecord

Spans = list[tuple[int, int]]
"""Runs of consecutive tokens: the first position and how many."""


@dataclass
class StepReads:
    """What one decode step of one request read in one layer.

    Attributes:
        heads: per KV head, the tokens read, as runs.
    """

    heads: list[Spans] = field(default_factory=list)

    def reads(self, position: int) -> int:
        """How many KV heads read a position."""
        return sum(any(a <= position < a + n for a, n in spans) for spans in self.heads)


class SelectionLog:
    """Listens to a trace in a thread; steps that read everything are not kept."""

    def __init__(self, endpoint: str) -> None:
        """Connect and listen."""
        self._steps: dict[str, dict[int, dict[int, StepReads]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self._collector = TraceCollector(endpoint)
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="demo-trace", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Records that got lost on the way."""
        return self._collector.lost

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until nothing has come for a moment."""
        self._idle.clear()
        self._idle.wait(timeout)

    def steps(self, rid: str, layer: int) -> list[StepReads]:
        """The decode steps of a request, in order, in one layer."""
        by_step = self._steps.get(rid, {})
        return [by_step[step][layer] for step in sorted(by_step) if layer in by_step[step]]

    def layers(self) -> list[int]:
        """Layers heard of."""
        return sorted(
            {
                layer
                for steps in self._steps.values()
                for layers in steps.values()
                for layer in layers
            }
        )

    def add(self, record: SelectionRecord) -> None:
        """Take in one record."""
        if record.method != "full":
            size = record.unit_size
            runs = [to_spans(units) for units in record.units]
            heads = [[(a * size, n * size) for a, n in spans] for spans in runs]
            self._steps[record.rid][record.step][record.layer] = StepReads(heads)

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        self._thread.join()
        self._collector.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            record = self._collector.receive(0.3)
            if record is None:
                self._idle.set()
            else:
                self.add(record)


def to_spans(units: Iterable[int]) -> Spans:
    """Whole numbers as runs of consecutive ones."""
    spans: Spans = []
    for unit in sorted(units):
        if spans and unit == spans[-1][0] + spans[-1][1]:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((unit, 1))
    return spans
