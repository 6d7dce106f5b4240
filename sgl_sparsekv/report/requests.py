"""Requests of a recorded trace: which are shown, and what each step of them read."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..serving.trace import SelectionRecord

DENSE = "full"
MOST_REQUESTS = 6
MOST_STEPS = 96
MOST_LAYERS = 12
Units = npt.NDArray[np.int32]
"""Different units, ascending."""


@dataclass
class Tally:
    """What a trace says of one request, before anything of it is kept.

    Attributes:
        methods: records by method.
        steps: decode steps seen.
        layers: layers that selected.
        dense: layers that read everything.
    """

    methods: Counter[str] = field(default_factory=Counter)
    steps: set[int] = field(default_factory=set)
    layers: set[int] = field(default_factory=set)
    dense: set[int] = field(default_factory=set)

    @property
    def method(self) -> str:
        """How it selected; `full` if it never did."""
        chosen = [name for name, _ in self.methods.most_common() if name != DENSE]
        return chosen[0] if chosen else DENSE


@dataclass
class Layer:
    """One layer of one request.

    Attributes:
        unit_size: tokens per unit.
        length: tokens of the longest context seen.
        read: per decode step and rank, the units of each KV head.
        shares: of the context that was read, one per record and KV head.
    """

    unit_size: int
    length: int = 0
    read: dict[int, dict[int, list[Units]]] = field(default_factory=lambda: defaultdict(dict))
    shares: list[float] = field(default_factory=list)

    def add(self, record: SelectionRecord) -> None:
        """Take in one record of it."""
        self.length = max(self.length, record.length)
        heads = [np.unique(np.asarray(head, np.int32)) for head in record.units]
        self.read[record.step][record.tp_rank] = heads
        there = -(-record.length // record.unit_size)
        self.shares += [len(head) / there for head in heads]

    @property
    def total(self) -> int:
        """Units of the longest context."""
        return -(-self.length // self.unit_size)

    def steps(self) -> list[list[Units]]:
        """Per decode step, the units of every KV head, rank by rank."""
        return [
            [head for rank in sorted(self.read[step]) for head in self.read[step][rank]]
            for step in sorted(self.read)
        ]

    def overlaps(self) -> list[float]:
        """Per step but the first, the share of what it read that the step before had read too."""
        steps = sorted(self.read)
        return [_overlap(self.read[before], self.read[now]) for before, now in pairwise(steps)]


@dataclass
class Request:
    """A request that is shown.

    Attributes:
        rid: SGLang's request id.
        method: how it selected.
        found: all that the trace has of it.
        layers: those that selected and are shown, by index.
        last: of single tokens, what the last step that is shown read: by layer and rank, the tokens
            of each KV head.
    """

    rid: str
    method: str
    found: Tally
    layers: dict[int, Layer] = field(default_factory=dict)
    last: dict[int, dict[int, list[Units]]] = field(default_factory=lambda: defaultdict(dict))

    def note_last(self, record: SelectionRecord) -> None:
        """Take in one record of the last step that is shown."""
        self.last[record.layer][record.tp_rank] = [np.unique(one) for one in record.units]

    def add(self, record: SelectionRecord) -> None:
        """Take in one record of it."""
        layer = self.layers.setdefault(record.layer, Layer(record.unit_size))
        layer.add(record)

    def overlaps(self) -> list[float]:
        """As of its layers, their mean by step."""
        found = [layer.overlaps() for layer in self.layers.values()]
        longest = max(map(len, found), default=0)
        by_step = [[one[i] for one in found if i < len(one)] for i in range(longest)]
        return [sum(values) / len(values) for values in by_step]


def tally(records: Iterable[SelectionRecord]) -> dict[str, Tally]:
    """What is there, by request, in the order of their first step."""
    found: dict[str, Tally] = defaultdict(Tally)
    for record in records:
        one = found[record.rid]
        one.methods[record.method] += 1
        one.steps.add(record.step)
        (one.dense if record.method == DENSE else one.layers).add(record.layer)
    return dict(found)


def choose(found: dict[str, Tally]) -> list[str]:
    """Requests to show: of each method in turn the one with the most steps left."""
    by_method: dict[str, list[str]] = defaultdict(list)
    for rid, one in sorted(found.items(), key=lambda item: -len(item[1].steps)):
        if one.method != DENSE:
            by_method[one.method].append(rid)
    chosen: list[str] = []
    while len(chosen) < MOST_REQUESTS and any(by_method.values()):
        chosen += [rids.pop(0) for rids in by_method.values() if rids]
    return sorted(chosen[:MOST_REQUESTS], key=list(found).index)


def collect(
    records: Iterable[SelectionRecord], found: dict[str, Tally], chosen: Iterable[str]
) -> list[Request]:
    """What the chosen requests read, in their first `MOST_STEPS` steps and `MOST_LAYERS` layers."""
    requests = {rid: Request(rid, found[rid].method, found[rid]) for rid in chosen}
    steps = {rid: set(sorted(found[rid].steps)[:MOST_STEPS]) for rid in requests}
    layers = {rid: spread(sorted(found[rid].layers), MOST_LAYERS) for rid in requests}
    for record in records:
        if record.step not in steps.get(record.rid, ()) or record.method == DENSE:
            continue
        if record.unit_size == 1 and record.step == max(steps[record.rid]):
            requests[record.rid].note_last(record)
        if record.layer in layers[record.rid]:
            requests[record.rid].add(record)
    return list(requests.values())


def spread(values: list[int], most: int) -> list[int]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]


def _overlap(before: dict[int, list[Units]], now: dict[int, list[Units]]) -> float:
    """Mean over the KV heads of ranks that both steps have."""
    shares = [
        len(np.intersect1d(new, old, assume_unique=True)) / len(new)
        for rank in before.keys() & now.keys()
        for old, new in zip(before[rank], now[rank], strict=False)
        if len(new)
    ]
    return sum(shares) / len(shares) if shares else 0.0
