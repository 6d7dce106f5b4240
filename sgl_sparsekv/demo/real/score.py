"""Figures of the second act: how fast, how much was read, and how far from dense."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...evaluation.bytes import metadata_share
from ...evaluation.tasks.base import Outcome
from ..score import LAYOUT
from ..timing import ms_per_step
from .saying import Saying


@dataclass(frozen=True)
class RealRun:
    """One way of reading.

    Attributes:
        name: torch_native, full, streaming, or a method.
        options: request options sent; empty for a server without our backend.
        sayings: what was said, per passage asked; torch_native is asked the first alone.
        agreement: share of the followed tokens whose likeliest next token is dense's.
        kl_nats: divergence of the next token's distribution from dense's, mean over those tokens.
        worst_nats: of the worst of them.
        kv_read_fraction: tokens attended over tokens in context, all decode steps and layers.
        decode_ms_per_step: median over all steps.
    """

    name: str
    options: dict[str, Any]
    agreement: float
    kl_nats: float
    worst_nats: float
    kv_read_fraction: float
    decode_ms_per_step: float
    sayings: tuple[Saying, ...] = field(repr=False)

    @property
    def tokens_per_s(self) -> float:
        """One stream, by its median step."""
        return 1000 / self.decode_ms_per_step if self.decode_ms_per_step else 0.0

    @property
    def cached_tokens(self) -> int:
        """Smallest number of prompt tokens found in the radix cache."""
        return min(saying.cached_tokens for saying in self.sayings)

    @property
    def metadata_read_fraction(self) -> float:
        """Bytes of page metadata read at most, over bytes of KV in context."""
        share: float = metadata_share(str(self.options.get("method", "full")), LAYOUT)
        return share

    @property
    def applied(self) -> bool:
        """Every answer names the options that were sent."""
        return all(
            (saying.report or {}).get(name) == value
            for saying in self.sayings
            for name, value in self.options.items()
        )


def score_real(
    name: str, options: dict[str, Any], sayings: Sequence[Saying], outcomes: Sequence[Outcome]
) -> RealRun:
    """Figures of one run, from what it said and from the tokens that it followed."""
    steps: list[int] = [outcome.detail["tokens"] for outcome in outcomes]

    def mean(values: Sequence[float]) -> float:
        return sum(n * v for n, v in zip(steps, values, strict=True)) / sum(steps)

    reports = [saying.report for saying in sayings if saying.report]
    there = sum(report["tokens_in_context"] for report in reports)
    read = sum(report["tokens_attended"] for report in reports)
    return RealRun(
        name=name,
        options=options,
        agreement=mean([outcome.detail["top-1"] for outcome in outcomes]),
        kl_nats=mean([outcome.value for outcome in outcomes]),
        worst_nats=max(outcome.detail["worst"] for outcome in outcomes),
        kv_read_fraction=read / there if there else 1.0,
        decode_ms_per_step=ms_per_step(saying.arrivals for saying in sayings),
        sayings=tuple(sayings),
    )


def parted(dense: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both say before they part; the shorter's length if they never do."""
    pairs = zip(dense, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(dense), len(other)))
