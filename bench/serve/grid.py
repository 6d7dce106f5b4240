"""What is measured: variants of decoding, points of the grid, and their order on a server."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OURS = "sparsekv"
FULL = "full"
WORKLOADS = ("cold", "hit", "shared", "offline", "program")
PAGE_SIZE = 64
QUESTION = PAGE_SIZE
"""Tokens behind a shared prefix. As long as a page, so that no request finds it in the cache: the
last token of a prompt is always computed, and a page is matched whole or not at all."""


@dataclass(frozen=True)
class Variant:
    """One way of decoding.

    Attributes:
        server: `sparsekv`, or a dense peer by the name of its attention backend.
        method: selection method; None on a peer.
        budget: tokens per request and KV head; None where everything is read.
        dense_layers: first layers read in full; None: as the server has it.
    """

    server: str
    method: str | None = None
    budget: int | None = None
    dense_layers: int | None = None

    @property
    def name(self) -> str:
        """As tables and pictures call it."""
        if self.method is None:
            return self.server
        return self.method if self.budget is None else f"{self.method} {self.budget}"

    @property
    def options(self) -> dict[str, Any] | None:
        """Request options; None on a peer, which knows none."""
        if self.method is None:
            return None
        found = {"method": self.method, "budget": self.budget, "dense_layers": self.dense_layers}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        workload: one of `WORKLOADS`.
        variant: how it decodes.
        context: tokens of the prompt; where prompts share a prefix, tokens of the prefix.
        concurrency: requests at a time; with a rate, 0: as many as come.
        requests: how many are sent.
        rate: requests offered per second; None: the next is sent when one ends.
    """

    workload: str
    variant: Variant
    context: int
    concurrency: int
    requests: int
    rate: float | None = None

    @property
    def words(self) -> str:
        """For messages."""
        load = f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} a second"
        return f"{self.workload}, {self.variant.name}, {self.context:,} tokens, {load}"


@dataclass(frozen=True)
class Grid:
    """The whole sweep.

    Attributes:
        device: `cpu` or `cuda`.
        peers: attention backends of SGLang's own.
        methods: selection methods beside `full`.
        budgets: tokens, of the single-stream points.
        contexts: tokens, of the single-stream points.
        load_budgets: budgets of the other points.
        load_contexts: tokens of the shared prefix of the other points.
        concurrency: requests at a time of the load points.
        rates: requests offered per second; none: no such points.
        requests: requests of a single-stream point.
        rounds: requests of a load point for each that is served at a time.
        tokens: tokens of each answer.
        goodput: limits in milliseconds by the tool's names: ttft, tpot, e2el.
        workloads: of `WORKLOADS`.
        seed: of prompts.
        timeout: seconds a point may take.
    """

    device: str
    peers: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    contexts: tuple[int, ...]
    load_budgets: tuple[int, ...]
    load_contexts: tuple[int, ...]
    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    requests: int
    rounds: int
    tokens: int
    goodput: dict[str, float]
    workloads: tuple[str, ...]
    seed: int
    timeout: int

    @property
    def servers(self) -> tuple[str, ...]:
        """In the order in which they run, one at a time."""
        return (*self.peers, OURS)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(*self.contexts, *(n + QUESTION for n in self.load_contexts))


def variants(
    grid: Grid, server: str, budgets: tuple[int, ...], dense_layers: int | None
) -> list[Variant]:
    """What one server is measured with; budgets matter to `sparsekv` alone."""
    if server != OURS:
        return [Variant(server)]
    sparse = [Variant(OURS, m, b, dense_layers) for m in grid.methods for b in budgets]
    return [Variant(OURS, FULL), *sparse]


def plan(grid: Grid, server: str, dense_layers: int | None = None) -> list[Point]:
    """Points of one server; each `hit` follows the `cold` point that fills the cache for it.

    A cold prefill belongs to the server, not to the request: page metadata is made for every
    method that the server offers. So there is one per context.
    """
    single = variants(grid, server, grid.budgets, dense_layers)
    points = [
        point
        for context in grid.contexts
        for point in (
            Point("cold", single[0], context, 1, grid.requests),
            *(Point("hit", one, context, 1, grid.requests) for one in single),
        )
    ]
    points += _load(grid, variants(grid, server, grid.load_budgets, dense_layers))
    return [point for point in points if point.workload in grid.workloads]


def offline(grid: Grid, dense_layers: int | None = None) -> list[Point]:
    """Points that start an engine of their own; as that takes long, for the first method alone."""
    if "offline" not in grid.workloads:
        return []
    most = max(grid.concurrency)
    return [
        Point("offline", one, context, most, most)
        for server in grid.servers
        for context in grid.load_contexts
        for one in variants(grid, server, grid.load_budgets, dense_layers)
        if one.method in (None, FULL, *grid.methods[:1])
    ]


def _load(grid: Grid, found: list[Variant]) -> Iterator[Point]:
    most = max(grid.concurrency)
    for context in grid.load_contexts:
        for at_once in grid.concurrency:
            for one in found:
                yield Point("shared", one, context, at_once, grid.rounds * at_once)
        for rate in grid.rates:
            for one in found:
                yield Point("shared", one, context, 0, grid.rounds * most, rate)
        for one in found:
            yield Point("program", one, context, most, most)
