"""The demo's conditions: what must hold for it to end with exit 0."""

from collections.abc import Sequence
from dataclasses import dataclass

from .scenario import Scenario
from .score import RunScore

CONTEXT = 16_384
"""Shared context the acceptance speaks of."""
READ_LIMIT = 0.05
"""Share of the KV that the method may read there."""


@dataclass(frozen=True)
class Check:
    """One condition of the demo.

    Attributes:
        text: what must hold.
        passed: whether it does.
        found: what was seen.
    """

    text: str
    passed: bool
    found: str


def check_all(
    scenario: Scenario, runs: Sequence[RunScore], page_size: int, method: str = "quest"
) -> list[Check]:
    """The demo's conditions; it fails when one does not hold."""
    by_name = {run.name: run for run in runs}
    count = len(scenario.questions)
    limit = max(READ_LIMIT, READ_LIMIT * CONTEXT / scenario.document_tokens)
    chosen, streaming = by_name[method], by_name["streaming"]
    cached = min(run.cached_tokens for run in runs)
    lost = sum(c and not s for c, s in zip(chosen.right, streaming.right, strict=True))
    checks = [
        Check(
            f"{name} answers every question",
            by_name[name].correct == count,
            f"{by_name[name].correct} of {count}",
        )
        for name in ("torch_native", "full", method)
    ]
    return [
        *checks,
        Check(
            f"{method} reads at most {limit:.1%} of the KV cache",
            chosen.kv_read_fraction <= limit,
            f"{chosen.kv_read_fraction:.2%}",
        ),
        Check(
            f"streaming, at the same budget, misses answers that {method} finds",
            lost > 0 and streaming.correct < count,
            f"{lost} of {count} missed",
        ),
        Check(
            "every question finds the document in the radix cache",
            cached >= scenario.document_tokens - page_size,
            f"{cached:,} of {scenario.document_tokens:,} tokens",
        ),
        Check(
            "every response names the options it was asked for",
            all(run.applied for run in runs),
            ", ".join(run.name for run in runs if not run.applied) or "all do",
        ),
        Check(
            "answers are several tokens long (the first comes from dense prefill)",
            min(len(question.answer) for question in scenario.questions) > 1,
            f"{scenario.answer_tokens} tokens",
        ),
    ]
