"""What a metric's values come to over many cells, and how that is written."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .results import Cell


@dataclass(frozen=True)
class Metric:
    """How the values of one metric are added up.

    Attributes:
        title: of a column.
        total: of cells, at least one.
        text: of a total.
        higher_is_better: which way is good.
    """

    title: str
    total: Callable[[list[Cell]], float]
    text: Callable[[float], str]
    higher_is_better: bool = True


def _mean(cells: list[Cell]) -> float:
    return sum(cell.value for cell in cells) / len(cells)


def _weighted(cells: list[Cell]) -> float:
    """Mean over tokens: a cell's value is a mean over its own."""
    tokens: list[int] = [cell.detail["tokens"] for cell in cells]
    return sum(n * cell.value for n, cell in zip(tokens, cells, strict=True)) / sum(tokens)


SHARE = Metric("right", _mean, "{:.1%}".format)
METRICS = {
    "nll": Metric("perplexity", lambda cells: math.exp(_weighted(cells)), "{:.3f}".format, False),
    "kl": Metric("KL, nats", _weighted, "{:.5f}".format, False),
}
"""Those that are no share; every other is judged from 0 to 1."""


def metric_of(cells: Iterable[Cell]) -> Metric:
    """The metric of cells of one run."""
    return METRICS.get(next(iter(cells)).metric, SHARE)
