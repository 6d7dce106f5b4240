"""From answers to figures, and from figures to a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..evaluation.bytes import metadata_share
from ..page_metadata import KeyLayout
from .answer import Answer
from .scenario import Scenario, words_right
from .timing import ms_per_step

LAYOUT = KeyLayout(1, 1, 64, torch.bfloat16)
"""One KV head of the models that the package brings."""


@dataclass(frozen=True)
class RunScore:
    """One way of reading, over all questions.

    Attributes:
        name: torch_native, full, streaming, or the method that the demo is about.
        options: request options sent; empty for a server without our backend.
        correct: questions answered right, every word.
        questions: how many there were.
        kv_read_fraction: tokens attended over tokens in context, all decode steps and layers.
        metadata_read_fraction: bytes of page metadata read, over bytes of KV in context.
        cached_tokens: smallest number of prompt tokens that a question found in the radix cache.
        decode_ms_per_step: median over the steps of the questions asked one by one.
        tokens_per_s: of the questions asked together, decode steps over the time they took.
        words: per question, which words were right.
        applied: the server's echo named the options that were sent.
        answers: what came back.
    """

    name: str
    options: dict[str, Any]
    correct: int
    questions: int
    kv_read_fraction: float
    metadata_read_fraction: float
    cached_tokens: int
    decode_ms_per_step: float
    tokens_per_s: float
    words: tuple[tuple[bool, ...], ...]
    applied: bool
    answers: tuple[Answer, ...] = field(repr=False, default=())

    @property
    def right(self) -> tuple[bool, ...]:
        """Per question, whether every word was right."""
        return tuple(all(words) for words in self.words)


def score_run(
    name: str, options: dict[str, Any], answers: Sequence[Answer], scenario: Scenario
) -> RunScore:
    """Figures of one run."""
    ordered = sorted(answers, key=lambda answer: answer.question)
    words = tuple(
        words_right(scenario.questions[answer.question].answer, answer.text) for answer in ordered
    )
    return RunScore(
        name=name,
        options=options,
        correct=sum(all(right) for right in words),
        questions=len(scenario.questions),
        kv_read_fraction=_read_fraction(ordered),
        metadata_read_fraction=metadata_share(str(options.get("method", "full")), LAYOUT),
        cached_tokens=min(answer.cached_tokens for answer in ordered),
        decode_ms_per_step=ms_per_step(a.arrivals for a in ordered if not a.concurrent),
        tokens_per_s=_tokens_per_s([a for a in ordered if a.concurrent]),
        words=words,
        applied=all(_applied(answer, options) for answer in ordered),
        answers=tuple(ordered),
    )


def _read_fraction(answers: Sequence[Answer]) -> float:
    """1.0 where no report says otherwise: SGLang's own backend reads everything."""
    reports = [answer.report for answer in answers if answer.report]
    there = sum(report["tokens_in_context"] for report in reports)
    return sum(report["tokens_attended"] for report in reports) / there if there else 1.0


def _tokens_per_s(answers: Sequence[Answer]) -> float:
    timed = [answer for answer in answers if answer.decode_steps]
    if not timed:
        return 0.0
    start = min(answer.arrivals[0][0] for answer in timed)
    end = max(answer.arrivals[-1][0] for answer in timed)
    return sum(answer.decode_steps for answer in timed) / (end - start)


def _applied(answer: Answer, options: dict[str, Any]) -> bool:
    if not options:
        return True
    report = answer.report or {}
    return report.get("rejected") is None and all(
        report.get(name) == value for name, value in options.items()
    )
