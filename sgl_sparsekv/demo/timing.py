"""Decode steps from the arrival of streamed tokens."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

Arrivals = Sequence[tuple[float, int]]
"""When (seconds) how many tokens were there, the first token first."""


def ms_per_step(answers: Iterable[Arrivals]) -> float:
    """Median over every decode step of all answers; 0 if there was none.

    A machine that is busy for a while slows some steps; their mean would tell of that. Tokens that
    arrive together share the time since those before them. The first token is prefill's.
    """
    steps = []
    for arrivals in answers:
        for (start, before), (end, after) in pairwise(arrivals):
            steps += [(end - start) / (after - before)] * (after - before)
    return 1000 * median(steps) if steps else 0.0
